"""Faces and Chairs: renders of 3D models, published as image files or drawn by :mod:`fastinfogan.data.render`.

The paper's faces come from the Basel Face Model, which is licensed and published as a model, not as images; its chairs
from ``rendered_chairs.tar``, whose file names say from where each was seen. A renderer of ours leaves one array of grey
images instead, with the exact factors beside it. Neither set has a published split: both splits are all of the images.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from fastinfogan.data.archives import ARRAY_ERRORS, SUFFIXES, encode, listing
from fastinfogan.data.factors import factors_of
from fastinfogan.data.split import Decoded, Encoded, Factors, Split
from fastinfogan.errors import UserError

ARRAY = "images.npy"
CHAIRS = "rendered_chairs"
CHAIR_CROP = 400  # of the 600 x 600 published: the chair fills the middle, the rest is white
CHAIR_NAME = re.compile(r"(?P<model>[^/]+)/renders/image_\d+_p(?P<elevation>\d+)_t(?P<azimuth>\d+)_r\d+\.png")


def open_faces(root: Path, split: Split) -> Decoded | Encoded:
    """Renders of faces: the renderer's ``images.npy`` or image files, in ``<root>/faces`` or ``root``.

    Image files may lie in a folder, a zip or a tar; ``factors.npz`` beside them is read where there is one, row i about
    the i-th name in sorted order. Raises :class:`UserError` when there are none, or the factors are not as many.
    """
    places = [root / "faces", root / "faces.zip", root / "faces.tar", root]
    place = next((place for place in places if _holds_images(place)), None)
    if place is None:
        raise UserError(
            f"renders of faces are absent: looked for {ARRAY}, or JPEG and PNG files, in "
            f"{' and '.join(str(folder.absolute()) for folder in (root / 'faces', root))}; render them from the Basel "
            f"Face Model (licensed by the University of Basel), or draw others with `python -m fastinfogan.data "
            f"render faces --out {root / 'faces'}`"
        )
    if (place / ARRAY).is_file():
        return open_array("faces", place)
    names, source = listing(place)
    home = place if place.is_dir() else place.parent
    return encode("faces", source, names, crop=None, home=home, factors=factors_of(home, len(names)))


def open_chairs(root: Path, split: Split) -> Decoded | Encoded:
    """Renders of chairs: ``rendered_chairs.tar``, or it unpacked, or the renderer's ``images.npy``.

    Looked for in ``<root>/chairs`` and ``root``. Of the published 600 x 600 the centred 400 x 400 are used; the names
    give the factors, see :func:`chair_factors`. Raises :class:`UserError` when the set is absent or damaged.
    """
    folders = (root / "chairs", root)
    if (rendered := next((folder for folder in folders if (folder / ARRAY).is_file()), None)) is not None:
        return open_array("chairs", rendered)
    places = [folder / name for folder in folders for name in (f"{CHAIRS}.tar", CHAIRS)]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise UserError(
            f"renders of chairs are absent: looked for {', '.join(str(place.absolute()) for place in places)} and "
            f"{ARRAY}; download {CHAIRS}.tar from the page of Seeing 3D Chairs (Aubry et al.), or draw others with "
            f"`python -m fastinfogan.data render chairs --out {root / 'chairs'}`"
        )
    names, source = listing(path)
    factors = chair_factors([str(path / name) for name in names])
    return encode("chairs", source, names, crop=CHAIR_CROP, home=path.parent, factors=factors)


def chair_factors(names: list[str]) -> Factors:
    """Model (its number in sorted order), azimuth and elevation in degrees of ``MODEL/renders/image_N_pE_tA_rR.png``.

    Raises :class:`UserError` for a name of another form.
    """
    found = [CHAIR_NAME.search(name) for name in names]
    if None in found:
        raise UserError(
            f"expected names like MODEL/renders/image_000_p020_t011_r096.png, got {names[found.index(None)]}: put the "
            f"published {CHAIRS} there and nothing else, or choose --dataset folder"
        )
    matches = [match for match in found if match]
    models = {model: number for number, model in enumerate(sorted({match["model"] for match in matches}))}
    rows = [(models[match["model"]], int(match["azimuth"]), int(match["elevation"])) for match in matches]
    values = torch.tensor(rows, dtype=torch.float32)
    elevation = values[:, 2]
    return Factors(
        ("model", "azimuth", "elevation"),
        ("categorical", "circular", "continuous"),
        values,
        (0.0, 0.0, float(elevation.min())),
        (float(len(models) - 1), 360.0, float(elevation.max())),
    )


def open_array(name: str, folder: Path) -> Decoded:
    """``images.npy`` in ``folder``, mapped: uint8 [n, H, W], one channel, with its factors.

    Raises :class:`UserError` for a damaged file, an array of another kind, or factors that are not as many.
    """
    path = folder / ARRAY
    try:
        images = np.lib.format.open_memmap(path, mode="c")  # "c": PyTorch wants to write, the file stays
    except ARRAY_ERRORS as error:
        raise UserError(
            f"{path} of {path.stat().st_size:,} bytes is not a whole array of images ({error}): delete it and "
            f"what else was rendered there, and render again"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 3 or not images.size or not images.flags.c_contiguous:
        raise UserError(
            f"{path} holds {images.dtype} {list(images.shape)}, expected uint8 [n, H, W]: render into another folder"
        )
    return Decoded(name, torch.from_numpy(images).unsqueeze(-1), factors=factors_of(folder, len(images)))


def _holds_images(place: Path) -> bool:
    """Whether a set lies right there: a folder of other sets, as the default --data is, must not pass for one."""
    if not place.is_dir():
        return place.suffix.lower() in (".zip", ".tar") and place.is_file()
    if place.name == "faces":
        return True
    return (place / ARRAY).is_file() or any(one.name.lower().endswith(SUFFIXES) for one in place.iterdir())
