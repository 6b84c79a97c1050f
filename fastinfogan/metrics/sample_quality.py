"""How good and how varied generated images are, through the eyes of a stated feature network.

Each number's name carries the network and the number of images, ``FID-mnistnet-10k``: with other features or fewer
images the same generator gets another number. Generated images are compared with real images of the test split, which
nothing was trained on; the same number of real training images, measured alike, is the floor that no generator is
expected to beat. A set without a test split is compared with a part of what G was trained on, and the figures say so:
there a generator that repeats its training images looks perfect.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from fastinfogan.metrics.distance import (
    NEAREST,
    Kid,
    Manifolds,
    diversity,
    frechet_distance,
    kernel_distance,
    manifolds,
)
from fastinfogan.metrics.features import FeatureNetwork

SAMPLES = 10_000


@dataclass(frozen=True)
class SampleQuality:
    """fid, kid, manifolds: generated against real test images; the same with ``floor`` for real training images.

    quotable: the figures under the names that carry network and sample count.
    seen: whether G was trained on the real images that stand for the test split.

    diversity: mean feature distance of two generated images of one code value, per categorical code, or under "all"
    without one; real_diversity: of real test images that Q gives one value, or of all.
    """

    features: str
    note: str
    samples: int
    seen: bool
    fid: float
    floor_fid: float
    kid: Kid
    floor_kid: Kid
    manifolds: Manifolds
    floor_manifolds: Manifolds
    diversity: dict[str, float]
    real_diversity: dict[str, float]
    quotable: dict[str, float]

    def lines(self) -> list[str]:
        """The figures and their protocol, as lines of a table."""
        suffix = f"{self.features}-{count_name(self.samples)}"
        shown = [f"sample quality, features of {self.features} ({self.note}):"]
        for name, value, floor in (
            (f"FID-{suffix}", f"{self.fid:.3f}", f"{self.floor_fid:.3f}"),
            (f"KID-{suffix}", _error(self.kid), _error(self.floor_kid)),
        ):
            shown.append(f"  {name:<34}{value:<22}(real training images: {floor})")
        floors = asdict(self.floor_manifolds)
        for name, one in asdict(self.manifolds).items():
            shown.append(f"  {f'{name}-{suffix}':<34}{one:<22.3f}(real training images: {floors[name]:.3f})")
        for name, spread in self.diversity.items():
            within = "all images" if name == "all" else f"one value of {name}"
            shown.append(f"  diversity within {within:<17}{spread:<22.3f}(real: {self.real_diversity[name]:.3f})")
        which = "that G was trained on: the set has no test split" if self.seen else "of the test split"
        shown.append(f"  against {self.samples:,} images {which};")
        shown.append(f"  KID: {self.kid.subsets} disjoint subsets of {self.kid.size:,}, ± its standard error;")
        shown.append(f"  {NEAREST} nearest neighbours, as Naeem et al. 2020 have them; one seed")
        return shown


def count_name(samples: int) -> str:
    """``10k`` for 10,000; the plain number where it is no multiple of 1,000."""
    return f"{samples // 1000}k" if samples % 1000 == 0 and samples else str(samples)


def _error(kid: Kid) -> str:
    return f"{kid.distance:.5f} ± {kid.standard_error:.5f}"


def sample_quality(
    network: FeatureNetwork,
    *,
    real: torch.Tensor,
    training: torch.Tensor,
    generated: torch.Tensor,
    real_values: torch.Tensor,
    generated_values: torch.Tensor,
    names: tuple[str, ...],
    seen: bool,
    seed: int,
) -> SampleQuality:
    """Measure ``generated`` images against ``real`` ones; as many of each, uint8 ``[n, h, w, c]``.

    ``training``: as many real training images, for the floor. ``generated_values``, ``real_values`` int64
    ``[n, len(names)]``: the values of the categorical codes ``names`` that images were made from, or read by Q.
    ``seen``: G was trained on ``real``.
    """
    of_real, of_training, of_generated = (network.features(pixels) for pixels in (real, training, generated))
    groups = {name: (generated_values[:, i], real_values[:, i]) for i, name in enumerate(names)}
    if not groups:
        groups = {"all": (torch.zeros(len(generated)), torch.zeros(len(real)))}
    fid, kid = frechet_distance(of_real, of_generated), kernel_distance(of_real, of_generated, seed=seed)
    balls = manifolds(of_real, of_generated)
    suffix = f"{network.name}-{count_name(len(generated))}"
    figures = {"FID": fid, "KID": kid.distance, **asdict(balls)}
    return SampleQuality(
        features=network.name,
        note=network.note,
        samples=len(generated),
        seen=seen,
        fid=fid,
        floor_fid=frechet_distance(of_real, of_training),
        kid=kid,
        floor_kid=kernel_distance(of_real, of_training, seed=seed),
        manifolds=balls,
        floor_manifolds=manifolds(of_real, of_training),
        diversity={name: diversity(of_generated, made) for name, (made, _) in groups.items()},
        real_diversity={name: diversity(of_real, read) for name, (_, read) in groups.items()},
        quotable={f"{name}-{suffix}": value for name, value in figures.items()},
    )
