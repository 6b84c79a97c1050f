"""dSprites: 737,280 white sprites on black, with every factor known; published as one npz file.

The pixels take 3 GB unpacked, so they are unpacked block by block into a mapped store. The file also holds a pickled
note about itself, which is never touched.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.data import store
from fastinfogan.data.archives import ARRAY_ERRORS, ZIP_ERRORS
from fastinfogan.data.factors import load_arrays
from fastinfogan.data.split import Decoded, FactorKind, Factors, Rejected, Split
from fastinfogan.errors import UserError

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SIZE = 64
# The columns of latents_classes and their numbers of classes. Orientations are 40 values from 0 to 2 pi with both ends,
# so the last is the first again: the period is 39 classes. All sprites are white, and a constant is no factor.
LATENTS: dict[str, tuple[FactorKind | None, int]] = {
    "color": (None, 1),
    "shape": ("categorical", 3),
    "scale": ("continuous", 6),
    "orientation": ("circular", 40),
    "x": ("continuous", 32),
    "y": ("continuous", 32),
}
MAX_IMAGES = math.prod(classes for _, classes in LATENTS.values())


def open_dsprites(root: Path, split: Split) -> Decoded:
    """dSprites from ``<root>/dsprites`` or ``root``: pixels uint8 [n, 64, 64, 1] of 0 and 255, labels the shape.

    There is no published split: both are all of the images. The factors are the published ``latents_classes``, so the
    class of each, counted from 0. The first call unpacks the pixels into ``.fastinfogan`` beside the file, see
    :func:`fastinfogan.data.store.keep`. Raises :class:`UserError` when the file is absent, damaged, or another one.
    """
    places = [root / "dsprites" / FILE, root / FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"expected {' or '.join(str(place.absolute()) for place in places)}: download it from the repository "
            f"dsprites-dataset of Google DeepMind, or draw it with `python -m fastinfogan.data render sprites --out "
            f"{root / 'dsprites'}`"
        )
    n, key = _checked(path)
    classes = load_arrays(path, ("latents_classes",))["latents_classes"]
    _require_classes(path, classes, n)
    progress = sys.stderr.isatty() or n == MAX_IMAGES
    stored = store.keep("dsprites", path.parent, key, (n, SIZE, SIZE, 1), _blocks(path, n), progress=progress)
    chosen = [(name, kind, number) for number, (name, (kind, _)) in enumerate(LATENTS.items()) if kind]
    columns = [number for *_, number in chosen]
    factors = Factors(
        tuple(name for name, *_ in chosen),
        tuple(kind for _, kind, _ in chosen),
        torch.from_numpy(classes[:, columns].astype(np.float32)),
        (0.0,) * len(chosen),
        tuple(float(LATENTS[name][1] - 1) for name, *_ in chosen),
    )
    labels = torch.from_numpy(classes[:, 1].astype(np.int64))
    return Decoded("dsprites", torch.from_numpy(stored.pixels), labels, factors=factors)


def _checked(path: Path) -> tuple[int, str]:
    """How many images ``path`` holds, and what changes when they do, from the headers alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            if missing := {"imgs.npy", "latents_classes.npy"} - set(archive.namelist()):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            member = archive.getinfo("imgs.npy")
            with archive.open(member) as file:
                shape = _header(file)
                expected = file.tell() + math.prod(shape)
        if shape[1:] != (SIZE, SIZE) or not 0 < shape[0] <= MAX_IMAGES:
            raise ValueError(f"imgs are {list(shape)}, expected [n, {SIZE}, {SIZE}] with n up to {MAX_IMAGES:,}")
        if member.file_size != expected:
            raise ValueError(f"imgs.npy holds {member.file_size:,} bytes, expected {expected:,}")
    except ARRAY_ERRORS as error:
        raise _damaged(path, error) from None
    return shape[0], f"{member.file_size} {member.CRC}"


def _header(file: IO[bytes]) -> tuple[int, ...]:
    """The shape of the array that ``file`` goes on with; ValueError unless its bytes are uint8 in C order."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype != np.uint8 or fortran:
        raise ValueError(f"imgs are {dtype}{' in Fortran order' if fortran else ''}, expected uint8 in C order")
    return shape


def _require_classes(path: Path, classes: npt.NDArray[np.int64], n: int) -> None:
    if classes.dtype.kind not in "iu" or classes.shape != (n, len(LATENTS)):
        raise UserError(
            f"{path} holds {n:,} imgs and latents_classes {classes.dtype} {list(classes.shape)}, expected integers "
            f"[{n}, {len(LATENTS)}]: download it again"
        )
    most = np.array([count for _, count in LATENTS.values()])
    if (classes < 0).any() or (classes >= most).any():
        raise UserError(f"{path} holds classes outside {', '.join(map(str, most))}: download it again")


def _blocks(path: Path, n: int) -> store.Blocks:
    def blocks(first: int, _: dict[int, Rejected]) -> Iterator[tuple[npt.NDArray[np.uint8], dict[int, Rejected]]]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
                _header(file)
                for start in range(0, n, store.BLOCK):  # a compressed file can only be read from its beginning
                    rows = min(store.BLOCK, n - start)
                    content = file.read(rows * SIZE * SIZE)
                    if start >= first * store.BLOCK:
                        yield _whitened(path, np.frombuffer(content, np.uint8).reshape(rows, SIZE, SIZE, 1)), {}
                file.read(1)  # the end of the member, where its sum is checked
        except ZIP_ERRORS as error:
            raise _damaged(path, error) from None

    return blocks


def _whitened(path: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if pixels.max() > 1:
        raise UserError(f"{path} holds the pixel value {pixels.max()}, expected 0 and 1: download it again")
    return pixels * np.uint8(255)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} of {path.stat().st_size:,} bytes is not a whole dSprites file ({error}): download it again"
    )
