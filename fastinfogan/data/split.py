"""What an opened split is: pixels already decoded, or compressed files that are read one at a time.

Small sets (MNIST, SVHN) are published decoded and live in memory; photographs stay compressed until DALI has turned
them into the networks' size. Everything downstream asks only which of the two it was given. Either may bring what is
known of its images: attributes or the exact values that a renderer drew, for evaluation only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

Split = Literal["train", "test"]
ImageShape = tuple[int, int, int]  # channels, height, width: the order of the networks' tables
FactorKind = Literal["continuous", "circular", "categorical"]


@dataclass(frozen=True)
class Rejected:
    """One file that cannot be decoded, and why. unread: it could not even be read, which may pass."""

    name: str
    reason: str
    unread: bool = False


@dataclass(frozen=True)
class Factors:
    """What generated each image: ``values`` float32 [n, k] on the CPU, row i about image i, a column for each name.

    Of a categorical factor the value is the class, counted from 0. ``low`` and ``high`` are the range that a factor
    is drawn from; of a circular one ``high - low`` is the period. ``units``, empty where nobody said, are such as
    ``degrees``, or the classes of a categorical factor, separated by ``|``. No training step reads any of it.
    """

    names: tuple[str, ...]
    kinds: tuple[FactorKind, ...]
    values: torch.Tensor
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Sequence[int] | torch.Tensor) -> Factors:
        """The factors of the images ``index`` (int64 [m]), in that order."""
        return replace(self, values=self.values[torch.as_tensor(index, dtype=torch.int64)])


@dataclass(frozen=True)
class Decoded:
    """A split held decoded: ``pixels`` uint8 [n, H, W, C] contiguous, ``labels`` int64 [n] or None.

    ``rejected`` names the files that could not be decoded and so have no row, neither here nor in ``factors``; rows
    keep the order of the rest. ``lost`` are their places among all files.
    """

    name: str
    pixels: torch.Tensor
    labels: torch.Tensor | None = None
    rejected: tuple[Rejected, ...] = ()
    factors: Factors | None = None
    lost: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Encoded:
    """A split of compressed image files.

    ``read(i)`` gives the bytes of file ``names[i]``, from any thread or process. ``crop`` is the side in pixels of
    the centred square that is used, None for the largest one. ``home`` is the folder that decoded copies may be kept
    in; ``fingerprint`` changes when any file does. ``factors`` has a row for every file.
    """

    name: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    crop: int | None
    home: Path
    fingerprint: str
    factors: Factors | None = None

    def __len__(self) -> int:
        return len(self.names)
