"""What an opened split is: pixels already decoded, or compressed files that are read one at a time.

Small sets (MNIST, SVHN) are published decoded and live in memory; photographs stay compressed until DALI has turned
them into the networks' size. Everything downstream asks only which of the two it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Split = Literal["train", "test"]
Image = tuple[int, int, int]  # channels, height, width: the order of the networks' tables


@dataclass(frozen=True)
class Rejected:
    """One file that cannot be decoded, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Decoded:
    """A split held decoded: ``pixels`` uint8 [n, H, W, C] contiguous, ``labels`` int64 [n] or None.

    ``rejected`` names the files that could not be decoded and so have no row; rows keep the order of the rest.
    """

    name: str
    pixels: torch.Tensor
    labels: torch.Tensor | None = None
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Encoded:
    """A split of compressed image files.

    ``read(i)`` gives the bytes of file ``names[i]``, from any thread or process. ``crop`` is the side in pixels of
    the centred square that is used, None for the largest one. ``home`` is the folder that decoded copies may be kept
    in; ``fingerprint`` changes when any file does.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[int], bytes]
    crop: int | None
    home: Path
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)
