"""Grey heads in 3D, in place of the paper's renders of the Basel Face Model: the factors of its Figure 3, exactly.

Pose, light, width and expression differ from image to image, and so does who is seen: principal components of shape,
and the tones of skin and hair.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from fastinfogan.data.render.heads import COMPONENTS, load
from fastinfogan.data.render.mesh import Mesh, Scene, towards, turned
from fastinfogan.data.render.output import Layout
from fastinfogan.data.render.painter import Bytes, Factor, Floats, Painter, Recipe

SIZES = (32, 64)
LAYOUT = Layout()
LIGHT_ELEVATION = 20.0  # degrees; the light goes round the head at this height
CENTRE = (0.0, 0.05, -0.15)  # of head and neck, about which a head turns

POSE = (
    Factor("azimuth", "continuous", -75, 75, "degrees"),
    Factor("elevation", "continuous", -30, 30, "degrees"),
    Factor("light", "continuous", -80, 80, "degrees"),
    Factor("width", "continuous", 0.8, 1.25),
)
EXPRESSION = (
    Factor("smile", "continuous", -1, 1),
    Factor("open", "continuous", 0, 1),
    Factor("brows", "continuous", -1, 1),
)
TONES = (Factor("skin", "continuous", 0.55, 0.95), Factor("hair", "continuous", 0.05, 0.5))
# Uniform with the variance of the components: no head lies far outside the others.
IDENTITY = tuple(Factor(f"identity {number}", "continuous", -(3**0.5), 3**0.5) for number in range(COMPONENTS))


class Faces(Painter):
    """Draws heads; needs moderngl and EGL."""

    factors = (*POSE, *EXPRESSION, *TONES, *IDENTITY)
    shown = ("azimuth", "elevation", "light", "width", "smile", "identity 0")

    def __init__(self, recipe: Recipe) -> None:
        self.shape = (recipe.size, recipe.size)
        self.heads = load()
        self.directions = np.concatenate([self.heads.identity, self.heads.expressions])
        corners = self.heads.triangles.ravel()
        sides = np.arange(len(corners)) // 3
        shape = (len(self.heads.mean), len(self.heads.triangles))
        self.around = csr_matrix((np.ones(len(corners), np.float32), (corners, sides)), shape)
        self.scene = Scene(recipe.size, zoom=0.54, ambient=0.2, background=0.0, closed=True)

    def paint(self, values: Floats, generator: np.random.Generator) -> Bytes:
        """The head with the factors ``values``, in front of black."""
        azimuth, elevation, light, width, smile, open_, brows, skin, hair, *identity = values.tolist()
        expression = (max(smile, 0), max(-smile, 0), open_, max(brows, 0), max(-brows, 0))
        weights = np.array([*identity, *expression], np.float32)
        # einsum and not BLAS, which may sum in another order on another number of threads
        positions = self.heads.mean + np.einsum("k,kvx->vx", weights, self.directions)
        positions = (positions - np.array(CENTRE, np.float32)) * np.array([width, 1, 1], np.float32)
        albedo = self.heads.skin * np.float32(skin) + self.heads.hair * np.float32(hair) + self.heads.fixed
        mesh = Mesh(positions, albedo, self.heads.triangles, self._normals(positions))
        return self.scene.draw(mesh, turned(azimuth, elevation), towards(light, LIGHT_ELEVATION))

    def _normals(self, positions: Floats) -> Floats:
        """The mean normal of the triangles around each vertex, weighted by their areas: float32 [v, 3]."""
        a, b, c = (positions[corner] for corner in self.heads.triangles.T)
        normals: Floats = self.around @ np.cross(b - a, c - a)
        return normals


PAINTER = Faces
