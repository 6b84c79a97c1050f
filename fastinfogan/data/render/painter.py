"""What a renderer is: the factors of an image, drawn from its own stream of random numbers, and the picture of them.

All random numbers of image i come from Philox4x64 with the key (seed, i), so neither its neighbours nor the number of
images, processes or interruptions can change it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfogan.data.split import FactorKind

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """What the bytes of a set depend on. ``version`` is raised when a renderer comes to draw otherwise.

    model_files: a digest of the files in the folder ``models``, by whose number each is a class.
    """

    renderer: str
    count: int
    seed: int
    size: int
    models: str | None = None
    model_files: str | None = None
    version: int = 1


@dataclass(frozen=True)
class Factor:
    """One thing that differs between images, drawn uniformly from ``low`` to ``high``.

    Of a categorical factor these are the first and the last class, and ``unit`` holds the classes, separated by ``|``.
    """

    name: str
    kind: FactorKind
    low: float
    high: float
    unit: str = ""

    def at(self, share: float) -> float:
        """The value that lies ``share`` of the way through the range, 0 <= share < 1."""
        if self.kind == "categorical":
            return float(int(share * (self.high + 1)))
        return self.low + share * (self.high - self.low)

    def told(self, value: float) -> str:
        """``value`` as a caption says it."""
        if self.kind == "categorical":
            return self.unit.split("|")[int(value)]
        return f"{value:.0f}°" if self.unit == "degrees" else f"{value:.2f}"


def categorical(name: str, classes: Iterable[str]) -> Factor:
    """A factor of ``classes``, equally probable."""
    named = tuple(classes)
    return Factor(name, "categorical", 0, len(named) - 1, "|".join(named))


class Painter:
    """Draws the images of one recipe, in one process.

    ``factors`` are all that it draws by, ``shown`` the names of those that the contact sheet is about, ``shape`` is
    that of an image, [H, W] or [H, W, 3].
    """

    factors: tuple[Factor, ...]
    shown: tuple[str, ...]
    shape: tuple[int, ...]

    def values(self, index: int, generator: np.random.Generator) -> Floats:
        """The factors of image ``index``: float32 [k], each independent of the others."""
        shares = generator.random(len(self.factors))
        return np.array([one.at(share) for one, share in zip(self.factors, shares, strict=True)], np.float32)

    def paint(self, values: Floats, generator: np.random.Generator) -> Bytes:
        """The image with the factors ``values``: uint8 of ``shape``. ``generator`` gives what no factor says."""
        raise NotImplementedError


class Picture(NamedTuple):
    """One image: ``pixels`` uint8 of the painter's shape, ``values`` float32 [k] in the order of its factors."""

    pixels: Bytes
    values: Floats


def picture(painter: Painter, seed: int, index: int, **changed: float) -> Picture:
    """Image ``index`` of the set with ``seed``; with other values of the factors in ``changed``, all else the same."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    values = painter.values(index, generator)
    for number, factor in enumerate(painter.factors):
        values[number] = changed.get(factor.name, values[number])
    return Picture(painter.paint(values, generator), values)
