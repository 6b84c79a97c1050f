"""Triangle meshes drawn as grey images by OpenGL without a screen, for the renderers of heads and chairs.

It runs on Mesa's software rasteriser as well as on a GPU. Images are drawn larger and averaged, which is all the
antialiasing there is. Each is drawn alone, in the same place, so that no other image can change its rounding.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfogan.data.render.painter import Bytes, Floats
from fastinfogan.errors import UserError

DISTANCE = 5.0  # of the camera, in units of the mesh: a portrait lens, with a little perspective
NEAR, FAR = DISTANCE - 2.5, DISTANCE + 2.5  # nothing of a mesh is farther than 2.5 units from its middle
SAMPLES = 4  # points along either side of a pixel

Matrix = npt.NDArray[np.float64]

_VERTEX = """
#version 330
uniform mat3 rotation;
uniform float zoom;
uniform vec3 lens;
in vec3 position;
in vec3 normal;
in float albedo;
out vec3 seen;
out vec3 smooth_normal;
out float tone;
void main() {
    seen = rotation * position;
    smooth_normal = rotation * normal;
    tone = albedo;
    float away = lens.x - seen.z;
    gl_Position = vec4(seen.xy * zoom * lens.x, lens.y * away + lens.z, away);
}
"""
# The triangle's own normal always faces the camera, whichever way round its corners were listed; it settles the sign.
_FRAGMENT = """
#version 330
uniform vec3 light;
uniform float ambient;
in vec3 seen;
in vec3 smooth_normal;
in float tone;
out float grey;
void main() {
    vec3 flat_normal = normalize(cross(dFdx(seen), dFdy(seen)));
    float given = length(smooth_normal);
    vec3 normal = given > 0.0 ? smooth_normal * sign(dot(smooth_normal, flat_normal)) / given : flat_normal;
    grey = tone * (ambient + (1.0 - ambient) * max(dot(normal, light), 0.0));
}
"""


@dataclass(frozen=True)
class Mesh:
    """``positions`` float32 [v, 3] within 2.5 units of the origin, x to the right, y up, z to the camera; ``albedo``
    float32 [v] in [0, 1]; ``triangles`` int32 [t, 3], anticlockwise seen from outside; ``normals`` float32 [v, 3] where
    the surface is smooth, None where each triangle is flat."""

    positions: Floats
    albedo: Floats
    triangles: npt.NDArray[np.int32]
    normals: Floats | None = None


class Scene:
    """Draws meshes as grey images of ``size`` x ``size`` pixels on a ``background`` in [0, 1].

    ``zoom`` is the length of one unit as a share of half the image's side. ``ambient`` is the share of the light that
    comes from everywhere. ``closed`` says that no mesh shows its inside, which then is not drawn. Raises
    :class:`UserError` when moderngl or the system's EGL is missing.
    """

    def __init__(self, size: int, *, zoom: float, ambient: float, background: float, closed: bool) -> None:
        self.size, self.background = size, background
        self.context = _context()
        self.program: Any = self.context.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        self.program["zoom"].value, self.program["ambient"].value = zoom, ambient
        self.program["lens"].value = (DISTANCE, (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR))
        side = (size * SAMPLES, size * SAMPLES)
        self.frame = self.context.framebuffer([self.context.texture(side, 1)], self.context.depth_renderbuffer(side))
        self.frame.use()
        self.context.enable(self.context.DEPTH_TEST)
        if closed:
            self.context.enable(self.context.CULL_FACE)

    def draw(self, mesh: Mesh, rotation: Matrix, light: Matrix) -> Bytes:
        """``mesh`` turned by ``rotation`` [3, 3] about the origin, lit from the unit vector ``light``: uint8 [H, W]."""
        self.program["rotation"].write(rotation.T.astype(np.float32).tobytes())  # OpenGL stores columns
        self.program["light"].value = tuple(light)
        normals = np.zeros_like(mesh.positions) if mesh.normals is None else mesh.normals
        columns = np.column_stack([mesh.positions, normals, mesh.albedo]).astype(np.float32)
        vertices, indices = self.context.buffer(columns.tobytes()), self.context.buffer(mesh.triangles.tobytes())
        layout = [(vertices, "3f 3f 1f", "position", "normal", "albedo")]
        array = self.context.vertex_array(self.program, layout, indices)
        self.frame.clear(self.background)
        array.render()
        content = self.frame.read(components=1, alignment=1)
        for held in (array, vertices, indices):
            held.release()
        fine = np.frombuffer(content, np.uint8).reshape(self.size, SAMPLES, self.size, SAMPLES)
        grey = (fine.sum((1, 3), dtype=np.uint32) + SAMPLES**2 // 2) // SAMPLES**2
        return grey[::-1].astype(np.uint8)  # OpenGL's first row is the lowest


def turned(azimuth: float, elevation: float) -> Matrix:
    """The rotation [3, 3] of a body that turns ``azimuth`` degrees to the right of the image, seen from ``elevation``.

    A positive azimuth shows more of the body's left side; the camera stands ``elevation`` degrees above it.
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    return about_x @ about_y


def towards(azimuth: float, elevation: float) -> Matrix:
    """The unit vector [3] to a light ``azimuth`` degrees to the right of the camera and ``elevation`` above it."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])


def _context() -> Any:
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's own threads: there is one process per core already
    try:
        import moderngl
    except ImportError as error:
        raise UserError(f"drawing 3D meshes needs moderngl ({error}): pip install -e '.[render]'") from None
    settings: dict[str, Any] = {"backend": "egl"}
    try:
        return moderngl.create_context(standalone=True, **settings)
    except Exception as error:  # moderngl raises bare Exceptions
        raise UserError(
            f"drawing 3D meshes needs OpenGL without a screen, EGL ({error}): run `apt-get install libegl1 "
            f"libgl1 libgl1-mesa-dri`, which draws without a GPU too"
        ) from None
