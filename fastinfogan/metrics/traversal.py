"""What a continuous code does to generated images, in the terms of the set's true factors.

Generated images have no ground truth, so a regressor reads it off them: trained on real training images, whose
factors are known, and judged on real test images, so that a correlation comes with how far it can be believed. "c2 is
the azimuth" is then a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fastinfogan.codes import LatentSpec
from fastinfogan.data.split import Factors
from fastinfogan.metrics.convnet import fit, outputs_of
from fastinfogan.metrics.images import Range, render
from fastinfogan.metrics.representation import Floats, r2, targets, unrolled, varying
from fastinfogan.metrics.strokes import rank_correlation
from fastinfogan.networks import Generator
from fastinfogan.ops import traversal
from fastinfogan.ops.philox import EVALUATION
from fastinfogan.prior import draw_latents

ROWS, VALUES = 200, 21
FIT_IMAGES, EPOCHS = 20_000, 4
READABLE = 0.5  # of the regressor's R2: what it reads of a factor below that is mostly something else
_SWEEP: dict[str, tuple[float, float]] = {"uniform": (-1.0, 1.0), "normal": (-2.0, 2.0)}


@dataclass(frozen=True)
class TraversalTruth:
    """factors: names; held_out: per factor the regressor's R2 on real test images (accuracy of a categorical one).

    correlations: per continuous code and factor, rank correlation of the code with the factor that the regressor
    reads, in [-1, 1]; None for categorical factors, which have no order, and for those that it cannot read: an R2 below
    0.5. within: the same along each row alone, all other latents held, as the paper's figures show it: median over the
    rows. A code that turns every head, but each from another side, has much of it and little of the other. None for
    circular factors too, which each row would cut open to its own advantage.
    """

    held_out: dict[str, float]
    correlations: dict[str, dict[str, float | None]]
    within: dict[str, dict[str, float | None]]
    rows: int
    values: int
    fit_images: int

    def lines(self) -> list[str]:
        """The correlations and the protocol, as lines of a table."""
        shown = ["rank correlation of each continuous code with each factor, read off generated images:"]
        shown.append(f"  {'factor':<16}{'regressor':>10}" + "".join(f"{code:>8}" for code in self.correlations))
        for name, quality in self.held_out.items():
            found = (of[name] for of in self.correlations.values())
            cells = ("-" if rho is None else f"{rho:+.2f}" for rho in found)
            shown.append(f"  {name:<16}{quality:>10.3f}" + "".join(f"{cell:>8}" for cell in cells))
        rows = []
        for name in self.held_out:
            strongest = max(self.correlations, key=lambda code: abs(self.correlations[code][name] or 0))
            if (rho := self.within[strongest][name]) is not None:
                rows.append(f"{name} {rho:+.2f} ({strongest})")
        if rows:
            shown.append("  the strongest code within a row of latents, median of the rows:")
            shown += [f"    {'   '.join(rows[first : first + 4])}" for first in range(0, len(rows), 4)]
        shown.append(
            f"  {self.rows} latents, the code swept over {self.values} values; regressor: its R2 (accuracy of a"
        )
        shown.append(
            f"  categorical factor) on real test images, after training on {self.fit_images:,} training images;"
        )
        shown.append(f"  -: a factor without order, or one that it cannot read (R2 below {READABLE})")
        return shown


class FactorReader:
    """A small convolutional network that reads factors off images: the value, cosine and sine, or logits of each."""

    def __init__(self, pixels: torch.Tensor, factors: Factors, *, epochs: int, seed: int, device: torch.device) -> None:
        """Trained on images uint8 ``[n, h, w, c]`` and those of their factors that vary."""
        self.device = device
        self.columns = varying(factors)
        self.names = tuple(factors.names[column] for column in self.columns)
        self.kinds = tuple(factors.kinds[column] for column in self.columns)
        wanted = self._targets(factors)
        # Standardised, so that no factor weighs more for the unit that it is given in; classes stay as they are.
        plain = [kind == "categorical" for kind in self.kinds]
        self.mean = [0.0 if skip else values.mean(0) for values, skip in zip(wanted, plain, strict=True)]
        self.std = [1.0 if skip else values.std() for values, skip in zip(wanted, plain, strict=True)]
        self.widths = [
            int(values.max()) + 1 if skip else values.shape[1] for values, skip in zip(wanted, plain, strict=True)
        ]
        sizes = [values.shape[1] for values in wanted]
        scaled = [(values - mean) / std for values, mean, std in zip(wanted, self.mean, self.std, strict=True)]

        def loss(outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            parts = zip(plain, outputs.split(self.widths, 1), truth.split(sizes, 1), strict=True)
            return torch.stack(
                [F.cross_entropy(found, true[:, 0].long()) if skip else F.mse_loss(found, true)
                 for skip, found, true in parts]
            ).sum()  # fmt: skip

        _, height, width, channels = pixels.shape
        table = torch.from_numpy(np.concatenate(scaled, 1)).float()
        self.network = fit(
            (channels, height, width), sum(self.widths), pixels, table, loss, epochs=epochs, seed=seed, device=device
        )

    def _targets(self, factors: Factors) -> list[Floats]:
        return [targets(factors, column) for column in self.columns]

    def read(self, pixels: torch.Tensor) -> list[Floats]:
        """Per factor what it is in images uint8 ``[n, h, w, c]``, in the form and units of ``targets``."""
        outputs = outputs_of(self.network, pixels, self.device).double()
        parts = zip(self.kinds, outputs.split(self.widths, 1), self.mean, self.std, strict=True)
        return [
            found.argmax(1, keepdim=True).double().numpy() if kind == "categorical" else found.numpy() * std + mean
            for kind, found, mean, std in parts
        ]

    def quality(self, pixels: torch.Tensor, factors: Factors) -> dict[str, float]:
        """Per factor R2 (of cosine and sine together for circular ones), or accuracy of a categorical one."""
        pairs = zip(self.names, self.kinds, self.read(pixels), self._targets(factors), strict=True)
        return {
            name: float(np.mean(found == true)) if kind == "categorical" else r2(found, true)
            for name, kind, found, true in pairs
        }


def traversal_truth(
    reader: FactorReader,
    held_out: dict[str, float],
    generator: Generator,
    spec: LatentSpec,
    image_range: Range,
    *,
    seed: int,
    fit_images: int,
) -> TraversalTruth:
    """Sweep each continuous code over its prior's range, or two standard deviations, and rank what ``reader`` reads.

    The other codes and the noise are drawn once per row and held. A circular factor is measured along the circle cut
    open where the correlation is largest. held_out: how well ``reader`` reads each factor of real test images.
    """
    device = next(generator.parameters()).device
    drawn = draw_latents(spec, ROWS, generator.prior, seed=seed, step=1, stream=EVALUATION, device=device)
    noise = drawn.z[:, : spec.noise]
    correlations: dict[str, dict[str, float | None]] = {}
    within: dict[str, dict[str, float | None]] = {}
    for place, prior in enumerate(spec.continuous):
        code = len(spec.categorical) + place
        values = torch.linspace(*_SWEEP[prior], VALUES, device=device)
        z = traversal(spec, noise, drawn.categories, drawn.continuous, code=code, values=values)
        found = reader.read(render(generator, z, image_range))
        swept = np.tile(values.double().cpu().numpy(), ROWS)
        over_all, in_rows = correlations.setdefault(spec.names[code], {}), within.setdefault(spec.names[code], {})
        for name, kind, read in zip(reader.names, reader.kinds, found, strict=True):
            readable = held_out[name] >= READABLE
            over_all[name] = _correlation(kind, swept, read) if readable else None
            in_rows[name] = _within(swept, read) if readable and kind == "continuous" else None
    return TraversalTruth(held_out, correlations, within, ROWS, VALUES, fit_images)


def _correlation(kind: str, swept: Floats, read: Floats) -> float | None:
    if kind == "categorical":
        return None
    candidates = unrolled(np.arctan2(read[:, 1], read[:, 0])) if kind == "circular" else [read[:, 0]]
    return max((rank_correlation(swept, one) for one in candidates), key=abs)


def _within(swept: Floats, read: Floats) -> float:
    rows = zip(swept.reshape(-1, VALUES), read.reshape(-1, VALUES), strict=True)
    return float(np.median([rank_correlation(*row) for row in rows]))
