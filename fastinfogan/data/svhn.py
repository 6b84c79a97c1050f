"""SVHN, cropped digits: the two published MATLAB files, read whole."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from fastinfogan.data.split import Decoded, Split
from fastinfogan.errors import UserError


def open_svhn(root: Path, split: Split) -> Decoded:
    """SVHN from ``<root>/svhn`` or ``<root>``: pixels uint8 [n, 32, 32, 3], labels int64 with the published 10 as 0.

    Raises :class:`UserError` when the file is absent, truncated, or not SVHN.
    """
    from scipy.io import loadmat  # slow to import, and only this set needs it
    from scipy.io.matlab import MatReadError

    name = f"{split}_32x32.mat"
    places = [root / "svhn" / name, root / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"expected {' or '.join(str(place.absolute()) for place in places)}: download {name} (Format 2, cropped "
            f"digits) from the page of The Street View House Numbers dataset, or run --dataset mnist instead"
        )
    try:
        content = loadmat(path, variable_names=("X", "y"))
        pixels, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError, zlib.error) as error:
        raise UserError(
            f"{path} of {path.stat().st_size:,} bytes is not a whole SVHN file ({error}): download it again"
        ) from None
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or pixels.shape[3:] != labels.shape:
        raise UserError(
            f"{path} holds X {pixels.dtype} {list(pixels.shape)} and {len(labels)} labels, expected uint8 "
            f"[32, 32, 3, n] and n: download {name} (Format 2, cropped digits) again"
        )
    # MATLAB keeps the image number last; the store wants one image after the other
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    return Decoded("svhn", torch.from_numpy(images), torch.from_numpy(labels % 10))
