"""Sprites in the manner of dSprites: 3 shapes, 6 scales, 40 orientations, 32 x 32 positions, white on black.

The 720 sprites in the middle are drawn once, without antialiasing as in the published set, and a position is a shift
by whole pixels. :class:`Sprites` so holds all 737,280 images in 7 MB on the device of the training; the renderer
writes any number of them as the published file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fastinfogan.data.factors import write_npz
from fastinfogan.data.render.output import Layout
from fastinfogan.data.render.painter import Bytes, Factor, Floats, Painter, Recipe, categorical
from fastinfogan.ops.philox import epoch_order

SIDE = 64
SIZES = (SIDE,)
SHAPES = ("square", "ellipse", "heart")
SCALES = np.linspace(0.5, 1, 6)
ORIENTATIONS = np.linspace(0, 2 * np.pi, 40)  # both ends, as published, so that the last is the first again
POSITIONS = np.linspace(0, 1, 32)
CLASSES = (len(SHAPES), len(SCALES), len(ORIENTATIONS), len(POSITIONS), len(POSITIONS))
ALL = int(np.prod(CLASSES))
FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"

_MARGIN = 16  # pixels: how far a sprite moves, and half of its greatest extent
_PADDED = SIDE + 2 * _MARGIN


class Sprites:
    """Every image of the set, made on ``device`` from its number; nothing waits for the device.

    Image ``i`` is the published one: the position in y changes fastest, then that in x, the orientation, the scale, the
    shape.
    """

    def __init__(self, device: torch.device | str) -> None:
        padded = np.pad(bases(), ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))
        self.padded = torch.from_numpy(padded).to(device).flatten()
        rows = torch.arange(SIDE, device=device)
        self.window = rows[:, None] * _PADDED + rows

    def at(self, indices: torch.Tensor) -> torch.Tensor:
        """Images ``indices`` (int64 [b] on the device): uint8 [b, 64, 64, 1] of 0 and 255."""
        sprite, x, y = indices // (32 * 32), indices // 32 % 32, indices % 32
        # class 16 is the sprite in the middle; the window moves against it
        corner = sprite * _PADDED**2 + (2 * _MARGIN - y) * _PADDED + 2 * _MARGIN - x
        return self.padded[corner[:, None, None] + self.window].unsqueeze(-1)


@cache
def bases() -> Bytes:
    """The sprites in the middle of the image: uint8 [720, 64, 64] of 0 and 255; the orientation changes fastest."""
    across, down = np.meshgrid(np.arange(SIDE) + 0.5 - SIDE / 2, np.arange(SIDE) + 0.5 - SIDE / 2)
    drawn = []
    for shape in SHAPES:
        for scale in SCALES:
            for orientation in range(len(ORIENTATIONS)):
                angle = ORIENTATIONS[orientation % (len(ORIENTATIONS) - 1)]  # a full turn to the last bit
                x = (np.cos(angle) * across + np.sin(angle) * down) / scale
                y = (np.cos(angle) * down - np.sin(angle) * across) / scale
                drawn.append(_inside(shape, x, y))
    return np.stack(drawn).astype(np.uint8) * np.uint8(255)


class SpritePainter(Painter):
    """Draws a sample of the set without repetition; in the published order if it is the whole set."""

    factors = (
        categorical("shape", SHAPES),
        Factor("scale", "continuous", 0.5, 1),
        Factor("orientation", "circular", 0, 360, "degrees"),
        Factor("x", "continuous", 0, 1),
        Factor("y", "continuous", 0, 1),
    )
    shown = ("shape", "scale", "orientation", "x", "y")
    shape = (SIDE, SIDE)

    def __init__(self, recipe: Recipe) -> None:
        whole = recipe.count == ALL
        order = torch.arange(ALL) if whole else epoch_order(ALL, seed=recipe.seed, epoch=0, device="cpu")
        self.numbers = order[: recipe.count].numpy()
        self.sprites = Sprites("cpu")

    def values(self, index: int, generator: np.random.Generator) -> Floats:
        """The factors of image ``index``, by its place in the order that the seed gives."""
        shape, scale, orientation, x, y = np.unravel_index(self.numbers[index], CLASSES)
        degrees = np.degrees(ORIENTATIONS[orientation])
        return np.array([shape, SCALES[scale], degrees, POSITIONS[x], POSITIONS[y]], np.float32)

    def paint(self, values: Floats, generator: np.random.Generator) -> Bytes:
        """The sprite nearest to ``values``: uint8 [64, 64] of 0 and 255."""
        number = np.ravel_multi_index(tuple(nearest(values[None]).T), CLASSES)
        return self.sprites.at(torch.from_numpy(number))[0, :, :, 0].numpy()


class SpriteFile(Layout):
    """The published npz, but for its pickled note: imgs uint8 [n, 64, 64] of 0 and 1, and the latents of each image."""

    products = (FILE,)
    most = ALL

    def write(self, part: Path, first: int, images: Sequence[Bytes]) -> None:
        """Keep the images as 0 and 1."""
        super().write(part, first, [image & np.uint8(1) for image in images])

    def finish(self, part: Path, factors: Sequence[Factor], values: Floats) -> None:
        """Write the npz."""
        classes = np.column_stack([np.zeros(len(values), np.int64), nearest(values)])
        shape, scale, orientation, x, y = classes[:, 1:].T
        latents = [np.ones(len(values)), shape + 1.0, SCALES[scale], ORIENTATIONS[orientation]]
        arrays = {
            "imgs": np.load(part / "images.npy", mmap_mode="r"),
            "latents_classes": classes,
            "latents_values": np.column_stack([*latents, POSITIONS[x], POSITIONS[y]]),
            "latents_names": np.array(["color", "shape", "scale", "orientation", "posX", "posY"]),
            "latents_sizes": np.array([1, *CLASSES]),
        }
        write_npz(part / FILE, arrays)


def nearest(values: Floats) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The classes nearest to the renderer's factors ``values`` [n, 5]: int64 [n, 5]."""
    low, high = (np.array([getattr(factor, end) for factor in SpritePainter.factors]) for end in ("low", "high"))
    return np.rint((values - low) / (high - low) * (np.array(CLASSES) - 1)).astype(np.int64)


def _inside(shape: str, x: Floats, y: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which points, in pixels of scale 1 from the middle (y down), lie in the shape; none reaches 16 pixels out."""
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) < 10.6
    if shape == "ellipse":
        return (x / 15) ** 2 + (y / 8.5) ** 2 < 1
    u, v = x / 12, (1.5 - y) / 12
    return (u**2 + v**2 - 1) ** 3 < u**2 * v**3


PAINTER = SpritePainter
LAYOUT = SpriteFile()
