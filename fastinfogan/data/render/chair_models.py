"""Chairs from files: OBJ models, and the chairs in furniture libraries of Sweet Home 3D.

Debian's package ``sweethome3d-furniture`` puts such libraries into ``/usr/share/sweethome3d/furniture``. Their models
are CC0 or CC BY 3.0: who publishes pictures of them names the authors, whom the libraries' LICENSE.TXT tells. Nothing
but vertices and triangles is read, so no material or texture is followed anywhere.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
import numpy.typing as npt

from fastinfogan.data.archives import ZIP_ERRORS
from fastinfogan.data.render.painter import Floats
from fastinfogan.errors import UserError

HALF_HEIGHT, RADIUS = 0.85, 1.05  # of the room that a model is scaled to fill, in units of the scene
MAX_BYTES = 16 << 20  # of one model's text; those of chairs that are larger take seconds to draw
WANTED = re.compile(r"chair", re.IGNORECASE)
UNWANTED = re.compile(r"wheel|ottoman|table|deck|high chair|beach", re.IGNORECASE)
# Called chairs, but two are to lie on and one is a stool.
LEFT_OUT = {"BlendSwap-CC-0 foldingChair", "BlendSwap-CC-0 relaxChair", "Scopia ext_chair"}


@dataclass(frozen=True)
class Model:
    """One chair in a file: ``member`` is its name in the library ``path``, or None where ``path`` is the OBJ itself.

    ``rotation`` [3, 3] turns it so that y is up and the front looks along z.
    """

    name: str
    path: Path
    member: str | None = None
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)

    @cached_property
    def mesh(self) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Positions float32 [v, 3] around the origin, scaled to the room there is, and triangles int32 [t, 3].

        Raises :class:`UserError` when the file is damaged or holds no surface.
        """
        try:
            if self.member is None:
                content = self.path.read_bytes()
            else:
                with zipfile.ZipFile(self.path) as library:
                    content = library.read(self.member)
            positions, triangles = read_obj(content.decode("latin-1"))
        except (OSError, IndexError, KeyError, OverflowError, *ZIP_ERRORS) as error:
            inside = f" in {self.path}" if self.member else ""
            raise UserError(
                f"{self.member or self.path}{inside} is not a whole OBJ model ({error}): leave it out of --models"
            ) from None
        turned = positions @ np.array(self.rotation).reshape(3, 3).T
        used = turned[np.unique(triangles)]
        turned -= (used.min(0) + used.max(0)) / 2
        half = (used.max(0) - used.min(0)) / 2
        turned *= min(HALF_HEIGHT / half[1], RADIUS / np.hypot(half[0], half[2]))
        return turned.astype(np.float32), triangles


def find_models(folder: Path) -> tuple[Model, ...]:
    """The chairs below ``folder``, sorted by name: every OBJ file, and in libraries what is called a chair.

    Raises :class:`UserError` when there is none, or a library is damaged.
    """
    models = [Model(_title(path.relative_to(folder)), path) for path in folder.rglob("*.obj")]
    for path in sorted(folder.rglob("*.sh3f")):
        models += _library(path)
    if not models:
        raise UserError(
            f"{folder} holds no .obj file and no .sh3f library with chairs: give a folder that does with --models, run "
            f"`apt-get install sweethome3d-furniture` and give /usr/share/sweethome3d/furniture, or drop --models"
        )
    return tuple(sorted(models, key=lambda model: model.name))


def model_files(folder: Path) -> str:
    """A digest of the names and sizes of the files that ``find_models`` looks into: another one means other chairs."""
    files = sorted(path for kind in ("*.obj", "*.sh3f") for path in folder.rglob(kind))
    listed = "\n".join(f"{path.relative_to(folder)} {path.lstat().st_size}" for path in files)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_obj(text: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Vertices [v, 3] and triangles int32 [t, 3] of an OBJ file; polygons are cut into fans.

    Raises ValueError, IndexError or OverflowError where it is malformed.
    """
    vertices: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    for line in text.splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(field) for field in fields[:3]])
        elif kind == "f":
            numbers = [int(field.split("/", 1)[0]) for field in fields]
            # counted from 1, or from the last vertex so far if negative
            corners = [number - 1 if number > 0 else len(vertices) + number for number in numbers]
            triangles += [(corners[0], *pair) for pair in pairwise(corners[1:])]
    if not triangles:
        raise ValueError("no faces")
    positions = np.array(vertices, np.float64)
    faces = np.array(triangles, np.int32)
    if (
        positions.shape[1:] != (3,)
        or not np.isfinite(positions).all()
        or faces.min() < 0
        or faces.max() >= len(positions)
    ):
        raise ValueError("faces of vertices that it does not hold")
    if not np.ptp(positions[faces], (0, 1)).any():
        raise ValueError("all its faces are one point")
    return positions, faces


def _library(path: Path) -> list[Model]:
    try:
        with zipfile.ZipFile(path) as library:
            catalog = library.read("PluginFurnitureCatalog.properties").decode("latin-1")
            sizes = {one.filename: one.file_size for one in library.infolist()}
    except (OSError, KeyError, *ZIP_ERRORS) as error:
        raise _broken(path, error) from None
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", catalog, re.MULTILINE):
        entries.setdefault(number, {})[key] = value.strip()
    models = []
    for entry in entries.values():
        name, member = entry.get("name", ""), entry.get("model", "").lstrip("/")
        if not member.endswith(".obj") or sizes.get(member, MAX_BYTES) >= MAX_BYTES:
            continue
        title = f"{path.stem} {_title(PurePosixPath(member.rsplit('/', 1)[-1]))}"
        if WANTED.search(name) and not UNWANTED.search(name) and title not in LEFT_OUT:
            models.append(Model(title, path, member, _rotation(path, entry.get("modelRotation"))))
    return models


def _rotation(library: Path, given: str | None) -> tuple[float, ...]:
    if given is None:
        return Model.rotation
    try:
        rotation = tuple(map(float, given.split()))
    except ValueError as error:
        raise _broken(library, error) from None
    if len(rotation) != 9:
        raise _broken(library, f"modelRotation {given!r} is not nine numbers")
    return rotation


def _broken(library: Path, what: object) -> UserError:
    return UserError(f"{library} is not a whole furniture library ({what}): leave it out of --models")


def _title(path: PurePath) -> str:
    return str(path.with_suffix("")).replace("|", "-")  # which separates the classes of a factor
