"""SVHN, cropped digits: the published MATLAB files, read whole."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.data.factors import FILE, read_factors
from fastinfogan.data.split import Decoded, Factors, Split
from fastinfogan.errors import UserError

# What scipy raises about a damaged file, beside its own MatReadError.
_BROKEN = (
    OSError,
    LookupError,
    ArithmeticError,
    TypeError,
    ValueError,
    RuntimeError,
    EOFError,
    MemoryError,
    zlib.error,
)


def open_svhn(root: Path, split: Split) -> Decoded:
    """SVHN from ``<root>/svhn`` or ``<root>``: pixels uint8 [n, 32, 32, 3], labels int64 with the published 10 as 0.

    ``extra_32x32.mat`` beside ``train_32x32.mat`` is appended to the training images, and that is said on stderr; the
    paper does not say whether it used them. A rendered set brings its factors, training images first. Raises
    :class:`UserError` when the file is absent, truncated, or not SVHN.
    """
    name = f"{split}_32x32.mat"
    folder = next((folder for folder in (root / "svhn", root) if (folder / name).is_file()), None)
    if folder is None:
        raise UserError(
            f"expected {(root / 'svhn' / name).absolute()} or {(root / name).absolute()}: download {name} (Format 2, "
            f"cropped digits) from the page of The Street View House Numbers dataset, or draw images of its layout "
            f"with `python -m fastinfogan.data render svhn-like --out {root / 'svhn'}`, or run --dataset mnist instead"
        )
    parts = [_read(folder / name)]
    extra = folder / "extra_32x32.mat"
    if split == "train" and extra.is_file():
        parts.append(_read(extra))
        print(f"svhn: {len(parts[1][1]):,} images of {extra} join the training images", file=sys.stderr)
    pixels, labels = _joined(parts)
    # The published extra images have no factors, and those of a rendered set are of its two files alone.
    factors = _factors(folder / FILE, len(labels), split) if len(parts) == 1 else None
    return Decoded("svhn", pixels, labels, factors=factors)


def _read(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """X as published, uint8 [32, 32, 3, n], and y, int64 [n]."""
    from scipy.io import loadmat  # slow to import, and only this set needs it
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=("X", "y"))
        pixels, told = content["X"], content["y"].reshape(-1)
        labels = told.astype(np.int64)
    except (*_BROKEN, MatReadError) as error:
        raise UserError(
            f"{path} of {path.stat().st_size:,} bytes is not a whole SVHN file ({error}): download it again"
        ) from None
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or pixels.shape[3:] != labels.shape:
        raise UserError(
            f"{path} holds X {pixels.dtype} {list(pixels.shape)} and {len(labels)} labels, expected uint8 "
            f"[32, 32, 3, n] and n: download {path.name} (Format 2, cropped digits) again"
        )
    if not labels.size:
        raise UserError(f"{path} holds no images: download it again")
    if (wrong := told[told != labels]).size:
        raise UserError(f"{path} holds the label {wrong[0]}, expected whole numbers: download it again")
    if not 1 <= labels.min() <= labels.max() <= 10:
        raise UserError(
            f"{path} holds labels from {labels.min()} to {labels.max()}, expected 1 to 10, which means 0: download it "
            f"again"
        )
    return pixels, labels


def _joined(
    parts: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """MATLAB keeps the image number last; the store wants one image after the other."""
    images = np.empty((sum(len(labels) for _, labels in parts), 32, 32, 3), np.uint8)
    first = 0
    for pixels, labels in parts:
        images[first : first + len(labels)] = pixels.transpose(3, 0, 1, 2)
        first += len(labels)
    return torch.from_numpy(images), torch.from_numpy(np.concatenate([labels for _, labels in parts]) % 10)


def _factors(path: Path, n: int, split: Split) -> Factors | None:
    if not path.is_file():
        return None
    factors = read_factors(path)
    if len(factors) <= n:  # both splits are in it
        raise UserError(
            f"{path} describes {len(factors):,} images but the {split} split alone has {n:,}: render the set again, "
            f"or delete {FILE}"
        )
    return factors.rows(range(n) if split == "train" else range(len(factors) - n, len(factors)))
