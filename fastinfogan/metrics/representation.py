"""Q's reading of an image as a table of codes, and the factors that the table is compared with.

A categorical code is one code, however many columns its posterior has: measures that take a column for a code would
find ten half-redundant ones in a perfect Cat(10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.data.split import Factors
from fastinfogan.metrics.images import Range, image_batches
from fastinfogan.networks import Discriminator

BINS = 20  # of a continuous code or factor: disentanglement_lib's
CUTS = 36  # places at which a circle is cut open, 10 degrees apart

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Representation:
    """names: of the codes; columns: per code float64 ``[n, k]``, a posterior over k values, or ``[n, 1]``, a mean."""

    names: tuple[str, ...]
    columns: tuple[Floats, ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def table(self) -> Floats:
        """All columns side by side, ``[n, sum of k]``."""
        return np.concatenate(self.columns, 1)

    @property
    def owners(self) -> Indices:
        """The number of the code that each column of ``table`` belongs to."""
        return np.repeat(np.arange(len(self.columns)), [columns.shape[1] for columns in self.columns])

    def levels(self, code: int) -> Indices:
        """Code number ``code`` as an index: the likeliest category, or one of 20 equally wide bins of the mean."""
        columns = self.columns[code]
        return columns.argmax(1) if columns.shape[1] > 1 else histogram_levels(columns[:, 0])


@torch.inference_mode()
def represent(
    discriminator: Discriminator, spec: LatentSpec, pixels: torch.Tensor, image_range: Range
) -> Representation:
    """Q's posteriors and means on images uint8 ``[n, h, w, c]``; ``discriminator`` in eval mode."""
    device = next(discriminator.parameters()).device
    parts = [discriminator(images)[1].float().cpu() for images in image_batches(pixels, image_range, device)]
    outputs = torch.cat(parts).double()
    columns = [outputs[:, spec.logit_columns(code)].softmax(1).numpy() for code in range(len(spec.categorical))]
    columns += [mean[:, None].numpy() for mean in outputs[:, spec.mean_columns].T]
    return Representation(spec.names, tuple(columns))


def histogram_levels(values: Floats) -> Indices:
    """The bin of each value, of 20 equally wide ones from the least value to the greatest: int64 ``[n]``."""
    edges = np.histogram_bin_edges(values, BINS)
    return np.digitize(values, edges[1:-1]).astype(np.int64)


def factor_levels(values: Floats, kind: str = "continuous") -> Indices:
    """A factor as an index: its distinct values where there are at most 64 or it is categorical, else 20 bins.

    The bins are of equally many images, except that images of one value are never in two of them.
    """
    distinct, levels = np.unique(values, return_inverse=True)
    if len(distinct) > 64 and kind != "categorical":
        below = np.searchsorted(np.sort(values), values)
        _, levels = np.unique(below * BINS // len(values), return_inverse=True)
    return levels.reshape(-1).astype(np.int64)


def varying(*parts: Factors) -> tuple[int, ...]:
    """The columns that take more than one value in each of ``parts`` of a set: of the others nothing can be asked."""
    columns = range(len(parts[0].names))
    return tuple(i for i in columns if all(len(factors.values[:, i].unique()) > 1 for factors in parts))


def angle(factors: Factors, column: int) -> Floats:
    """A circular factor in radians: its period, ``high - low``, becomes 2 pi."""
    low, high = factors.low[column], factors.high[column]
    values: Floats = factors.values[:, column].double().numpy()
    return (values - low) * (2 * np.pi / (high - low))


def unrolled(radians: Floats) -> list[Floats]:
    """A circle cut open at each of 36 places: the angle from the cut, in [0, 2 pi).

    A code that is the angle jumps somewhere; measured along the circle cut open there, it is perfect. The best cut is
    chosen for every code alike, which raises the correlation of an unrelated one by about 1 / sqrt(n) as well.
    """
    return [np.mod(radians - 2 * np.pi * cut / CUTS, 2 * np.pi) for cut in range(CUTS)]


def targets(factors: Factors, column: int) -> Floats:
    """What predicts a factor must give: ``[n, 1]``, or cosine and sine ``[n, 2]`` of a circular one."""
    if factors.kinds[column] == "circular":
        radians = angle(factors, column)
        return np.stack([np.cos(radians), np.sin(radians)], 1)
    values: Floats = factors.values[:, [column]].double().numpy()
    return values


def r2(predicted: Floats, true: Floats) -> float:
    """1 - squared error / variance, summed over the columns of ``[n, k]``: 1 is perfect, 0 no better than the mean.

    NaN where nothing varies that could be explained.
    """
    variance = float(np.square(true - true.mean(0)).sum())
    return 1 - float(np.square(true - predicted).sum()) / variance if variance else math.nan
