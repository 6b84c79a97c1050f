"""How far two sets of images lie apart, as seen by a feature network: functions of two tables of features.

Nothing here knows which network made the features, so none of these numbers has a name of its own: the caller names
the network and the number of images (``FID-mnistnet-10k``). All arithmetic is float64.

Sources: Heusel et al. 2017 (Frechet distance), Binkowski et al. 2018 (kernel distance), Kynkaanniemi et al. 2019
(precision and recall), Naeem et al. 2020 (density and coverage). They are written out here because the packaged
versions either need torchvision to import (torch-fidelity) or hold all pairwise distances at once (prdc).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

NEAREST = 5  # Naeem et al. 2020
KID_SUBSET_SIZE = 1000  # Binkowski et al. 2018
DIVERSITY_ROWS = 500
_CHUNK = 1000


@dataclass(frozen=True)
class Kid:
    """distance: mean over ``subsets`` disjoint subsets of ``size`` rows; standard_error: of that mean."""

    distance: float
    standard_error: float
    subsets: int
    size: int


@dataclass(frozen=True)
class Manifolds:
    """precision, recall, coverage: shares in [0, 1]; density: 1 where both sets are alike, and may exceed it."""

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_of_moments(
    mean_a: torch.Tensor, covariance_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """Squared Frechet distance of two Gaussians: |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) (Heusel et al., Eq. 6).

    The trace of the root is taken from the symmetric S^(1/2) S' S^(1/2), which has the same eigenvalues as S S': no
    complex root, and a singular covariance is no special case.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    apart = (mean_a - mean_b).square().sum()
    return float(apart + covariance_a.trace() + covariance_b.trace() - 2 * overlap)


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The Frechet distance of Gaussians fitted to features ``a [n, d]`` and ``b [m, d]``; biased upwards by 1/n."""
    moments = [(rows.mean(0), torch.cov(rows.T).reshape(rows.shape[1], -1)) for rows in (a.double(), b.double())]
    return frechet_of_moments(*moments[0], *moments[1])


def kernel_distance(a: torch.Tensor, b: torch.Tensor, *, seed: int, size: int | None = None) -> Kid:
    """Unbiased squared MMD under the kernel (x.y / d + 1)^3, mean over subsets of ``size`` rows of each set.

    The subsets are a random partition, so that they are independent and their scatter gives an honest error; drawn
    with overlap, as usually done, a hundred subsets of one sample would claim a third of it. Without ``size``: 1,000
    rows, or what makes ten subsets of the smaller set.
    """
    a, b = a.double(), b.double()
    rows = min(len(a), len(b))
    size = size or max(2, min(KID_SUBSET_SIZE, rows // 10))
    generator = torch.Generator().manual_seed(seed)
    a, b = (table[torch.randperm(len(table), generator=generator)][:rows] for table in (a, b))
    pairs = list(zip(a.split(size), b.split(size), strict=True))[: rows // size]
    found = [_mmd2(*pair) for pair in pairs]
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Kid(float(np.mean(found)), error, len(found), size)


def _mmd2(a: torch.Tensor, b: torch.Tensor) -> float:
    """Binkowski et al., Eq. 4: no term compares an image with itself, so that equal distributions give 0 on average."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1).pow(3)

    def within(x: torch.Tensor) -> torch.Tensor:
        table = kernel(x, x)
        return (table.sum() - table.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def manifolds(real: torch.Tensor, generated: torch.Tensor, nearest: int = NEAREST) -> Manifolds:
    """Precision, recall, density and coverage of ``generated [m, d]`` against ``real [n, d]``.

    Each row of a set stands for a ball that reaches to its ``nearest``-th neighbour in the same set. precision: share
    of generated rows in some real ball; recall: of real rows in some generated ball; density: mean number of real
    balls around a generated row, over ``nearest``; coverage: share of real balls that hold a generated row.
    """
    real, generated = real.double(), generated.double()
    real_radii, generated_radii = _radii(real, nearest), _radii(generated, nearest)
    balls_around = torch.zeros(len(generated), dtype=torch.int64)
    precise = torch.zeros(len(generated), dtype=torch.bool)
    recalled = covered = 0
    for start in range(0, len(real), _CHUNK):
        rows = slice(start, start + _CHUNK)
        distances = torch.cdist(real[rows], generated)
        # At its very edge a row is in a ball, as Kynkäänniemi et al. 2019 have it for precision and recall, and is not,
        # as Naeem et al. 2020 have it for density and coverage.
        precise |= (distances <= real_radii[rows, None]).any(0)
        in_real_ball = distances < real_radii[rows, None]
        balls_around += in_real_ball.sum(0)
        covered += int(in_real_ball.any(1).sum())
        recalled += int((distances <= generated_radii[None]).any(1).sum())
    return Manifolds(
        precision=float(precise.double().mean()),
        recall=recalled / len(real),
        density=float(balls_around.double().mean()) / nearest,
        coverage=covered / len(real),
    )


def _radii(rows: torch.Tensor, nearest: int) -> torch.Tensor:
    """Distance of each row to its ``nearest``-th neighbour, itself left out: the smallest of all is to itself."""
    nearest = min(nearest, len(rows) - 1)
    parts = [torch.cdist(part, rows).kthvalue(nearest + 1, dim=1).values for part in rows.split(_CHUNK)]
    return torch.cat(parts)


def diversity(features: torch.Tensor, groups: torch.Tensor) -> float:
    """Mean Euclidean distance between two different rows of one group, averaged over groups.

    ``features [n, d]``, ``groups`` int64 ``[n]``. Of each group the first 500 rows count; groups of one row do not.
    """
    found = []
    for group in groups.unique():
        rows = features[groups == group][:DIVERSITY_ROWS].double()
        if len(rows) > 1:
            found.append(float(torch.cdist(rows, rows).sum()) / (len(rows) * (len(rows) - 1)))
    return float(np.mean(found)) if found else math.nan
