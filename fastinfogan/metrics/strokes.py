"""Slant and stroke width of digits, measured on the pixels: whether c2 and c3 are rotation and width, as a number.

Figure 2 (c) and (d) of the paper show it; here each continuous code is ranked against each measure on generated
digits. Measures, not learned regressors: nothing is fitted, so no split can leak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr

from fastinfogan.metrics.images import Generated

ZOOM = 4  # a stroke is two or three pixels wide: its edge is found between them

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strokes:
    """Spearman's rank correlation of each continuous code (by name) with slant and with width, in [-1, 1].

    overall: over all generated digits; within: mean over the values of the first categorical code, because a 1 leans
    otherwise than a 7 whatever the code says. Empty ``within`` where there is no categorical code.
    """

    overall: dict[str, dict[str, float]]
    within: dict[str, dict[str, float]]
    samples: int

    def lines(self) -> list[str]:
        """The correlations, as lines of a table."""
        shown = [f"rank correlation with the strokes of {self.samples:,} generated digits (within a category):"]
        for name, measures in self.overall.items():
            parts = []
            for measure, rho in measures.items():
                within = f" ({self.within[name][measure]:+.2f})" if self.within else ""
                parts.append(f"{measure} {rho:+.2f}{within}")
            shown.append(f"  {name:<6}" + "   ".join(parts))
        return shown


def slant(pixels: torch.Tensor) -> Floats:
    """Degrees that each image uint8 ``[n, h, w, 1]`` leans to the right of upright: float64 ``[n]``; NaN if empty.

    The shear that would make the second moments of the ink upright: atan(-mu_xy / mu_yy), y downwards.
    """
    ink = pixels[..., 0].double()
    total = ink.sum((1, 2))
    y, x = (torch.arange(size, dtype=torch.float64) for size in ink.shape[1:])
    middle_y, middle_x = (ink.sum(2) @ y) / total, (ink.sum(1) @ x) / total
    off_y, off_x = y - middle_y[:, None], x - middle_x[:, None]
    covariance = torch.einsum("nyx,ny,nx->n", ink, off_y, off_x)
    variance = torch.einsum("nyx,ny->n", ink, off_y.square())
    found: Floats = torch.rad2deg(torch.atan(-covariance / variance)).numpy()
    return found


def width(pixels: torch.Tensor) -> Floats:
    """Mean stroke width in pixels of each image uint8 ``[n, h, w, 1]``: float64 ``[n]``; NaN if empty.

    Four times the mean distance of inked points to the edge: across a band of width w that distance runs from 0 to
    w / 2 and back, w / 4 on average. The image is enlarged four times and inked where it is above half.
    """
    n, height, across = pixels.shape[:3]
    large = F.interpolate(pixels.permute(0, 3, 1, 2).float(), scale_factor=ZOOM, mode="bilinear")[:, 0] > 127.5
    # A border of paper: ink that touches the image's edge ends there.
    inked = np.zeros((n, height * ZOOM + 2, across * ZOOM + 2), dtype=bool)
    inked[:, 1:-1, 1:-1] = large.numpy()
    found = np.full(n, np.nan)
    for row, one in enumerate(inked):
        if one.any():
            # The distance is to the middle of the nearest blank point, half a point beyond the edge.
            found[row] = 4 * (distance_transform_edt(one)[one].mean() - 0.5) / ZOOM
    return found


MEASURES = {"slant": slant, "width": width}


def stroke_correlations(made: Generated, names: tuple[str, ...]) -> Strokes:
    """Rank correlations of the continuous codes ``names`` of generated digits with slant and width; blanks left out."""
    found = {measure: measured(made.pixels) for measure, measured in MEASURES.items()}
    codes = made.continuous.double().numpy()
    categories = made.categories[:, 0].numpy() if made.categories.shape[1] else None
    overall: dict[str, dict[str, float]] = {}
    within: dict[str, dict[str, float]] = {}
    for column, name in enumerate(names):
        overall[name] = {measure: rank_correlation(codes[:, column], of) for measure, of in found.items()}
        if categories is not None:
            within[name] = {
                measure: float(np.mean([
                    rank_correlation(codes[categories == value, column], of[categories == value])
                    for value in np.unique(categories)
                ]))
                for measure, of in found.items()
            }  # fmt: skip
    return Strokes(overall, within, len(codes))


def rank_correlation(code: Floats, measure: Floats) -> float:
    """Spearman's rho over the rows where ``measure`` is finite; 0 where either is constant there."""
    finite = np.isfinite(measure)
    code, measure = code[finite], measure[finite]
    if len(code) < 2 or np.ptp(code) == 0 or np.ptp(measure) == 0:
        return 0.0
    return float(spearmanr(code, measure).statistic)
