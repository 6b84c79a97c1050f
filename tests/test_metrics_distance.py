"""The distances between sets of features equal closed forms and hand-made constructions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan.metrics.distance import (
    Manifolds,
    diversity,
    frechet_distance,
    frechet_of_moments,
    kernel_distance,
    manifolds,
)


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, seed: int) -> torch.Tensor:
    factor = normal(d, d, seed)
    return factor @ factor.T


@pytest.mark.parametrize(
    ("mean", "std_a", "std_b"), [(0.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.0, 1.0, 4.0), (-2.0, 0.5, 3)]
)
def test_the_frechet_distance_of_two_normals_on_a_line_is_known(mean: float, std_a: float, std_b: float) -> None:
    one = torch.ones(1, dtype=torch.float64)
    found = frechet_of_moments(0 * one, (one * std_a**2)[:, None], mean * one, (one * std_b**2)[:, None])
    assert found == pytest.approx(mean**2 + (std_a - std_b) ** 2, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(d=st.integers(1, 12), seed=st.integers(0, 999))
def test_the_frechet_distance_is_the_published_formula(d: int, seed: int) -> None:
    a, b = covariance(d, seed), covariance(d, seed + 1)
    apart = normal(1, d, seed + 2)[0]
    root = scipy.linalg.sqrtm((a @ b).numpy())
    expected = apart.square().sum() + a.trace() + b.trace() - 2 * root.trace().real
    assert frechet_of_moments(0 * apart, a, apart, b) == pytest.approx(float(expected), rel=1e-6, abs=1e-5)
    assert frechet_of_moments(apart, a, apart, a) == pytest.approx(0, abs=1e-7 * float(a.trace()) + 1e-7)


def test_the_frechet_distance_takes_a_singular_covariance() -> None:
    flat = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))
    other = torch.diag(torch.tensor([1.0, 9.0, 0.0], dtype=torch.float64))
    zero = torch.zeros(3, dtype=torch.float64)
    assert frechet_of_moments(zero, flat, zero, other) == pytest.approx((2 - 1) ** 2 + 9)


def test_the_frechet_distance_of_samples_approaches_that_of_their_gaussians() -> None:
    mixing = normal(5, 5, 9)
    a, b = normal(40_000, 5, 0), normal(40_000, 5, 1) @ mixing + 1
    exact = frechet_of_moments(
        torch.zeros(5).double(), torch.eye(5).double(), torch.ones(5).double(), mixing.T @ mixing
    )
    assert frechet_distance(a, b) == pytest.approx(exact, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert 0 < frechet_distance(a, normal(40_000, 5, 2)) < 5 * 6 / 40_000  # biased upwards, by the order of d^2 / n


def test_the_kernel_distance_of_a_few_rows_is_that_of_the_sums_written_out() -> None:
    a, b = normal(4, 3, 0), normal(4, 3, 1)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / 12
    expected -= 2 * sum(k(x, y) for x in a for y in b) / 16
    assert kernel_distance(a, b, seed=0, size=4).distance == pytest.approx(expected)


def test_the_kernel_distance_of_one_distribution_to_itself_is_zero_within_its_error() -> None:
    """A biased estimate would lie at tr E[k(x, x)] / size, dozens of standard errors away."""
    found = [kernel_distance(normal(500, 8, 2 * i), normal(500, 8, 2 * i + 1), seed=i, size=50) for i in range(60)]
    values = torch.tensor([one.distance for one in found])
    assert abs(values.mean()) < 3.5 * values.std() / math.sqrt(len(found))
    assert (values < 0).any() and (values > 0).any()
    # and the error that each of them states is the scatter that they have
    assert float(values.std()) == pytest.approx(float(np.mean([one.standard_error for one in found])), rel=0.3)


def test_the_kernel_distance_of_shifted_points_is_known() -> None:
    """On a line, with x = 0 always and y = s always: (1)^3 + (s^2 + 1)^3 - 2 (1)^3."""
    zero, shifted = torch.zeros(50, 1), torch.full((50, 1), 2.0)
    found = kernel_distance(zero, shifted, seed=0, size=20)
    assert found.distance == pytest.approx(5**3 - 1) and found.standard_error == pytest.approx(0)
    assert (found.subsets, found.size) == (2, 20)  # of 50 rows; the rest would be a smaller one


@pytest.mark.parametrize(("rows", "subsets", "size"), [(10_000, 10, 1000), (5000, 10, 500), (140, 10, 14), (6, 3, 2)])
def test_the_subsets_are_of_a_thousand_rows_or_ten_in_number(rows: int, subsets: int, size: int) -> None:
    found = kernel_distance(torch.zeros(rows, 1), torch.zeros(rows + 1, 1), seed=0)
    assert (found.subsets, found.size) == (subsets, size)


def test_a_set_against_itself_has_full_precision_recall_and_coverage() -> None:
    rows = normal(2500, 4, 0)  # more than one chunk
    found = manifolds(rows, rows, nearest=5)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # A row lies in its own ball, and in those of the rows that count it among their four nearest: 5 on average.
    assert found.density == pytest.approx(1)


def test_a_set_of_copies_against_itself_is_precise_and_recalled() -> None:
    """Their balls have no extent: for these two, what lies on the edge is in it."""
    rows = torch.randn(25, 3, generator=torch.Generator().manual_seed(0)).repeat(8, 1)
    found = manifolds(rows, rows)
    assert (found.precision, found.recall) == (1, 1)


def test_sets_far_apart_have_none() -> None:
    assert manifolds(normal(100, 3, 0), normal(100, 3, 1) + 100) == Manifolds(0, 0, 0, 0)


def test_one_mode_of_two_is_precise_but_recalls_half() -> None:
    one, other = normal(400, 2, 0), normal(400, 2, 1) + 50
    real = torch.cat([one, other])
    found = manifolds(real, normal(3000, 2, 2) * 0.5)
    assert found.precision > 0.99 and found.recall <= 0.5 and found.coverage <= 0.5
    assert manifolds(real[:400], real).precision < 0.6 and manifolds(real[:400], real).recall == 1


def test_the_four_shares_are_those_counted_by_hand() -> None:
    """Points on a line, balls that reach to the nearest neighbour."""
    real = torch.tensor([[0.0], [1.0], [4.0], [30.0]])  # balls (-1, 1), (0, 2), (1, 7), (4, 56)
    made = torch.tensor([[0.5], [1.5], [8.0], [60.0]])  # balls (-0.5, 1.5), (0.5, 2.5), (1.5, 14.5), (8, 112)
    found = manifolds(real, made, nearest=1)
    assert found.precision == 3 / 4  # all but 60
    # 0.5 lies in the balls of 0 and 1, 1.5 in those of 1 and 4, 8 in that of 30
    assert found.density == 5 / 4
    assert found.recall == 1  # 0 and 1 lie in the ball of 0.5, 4 in that of 8, 30 in that of 60
    assert found.coverage == 1
    few = manifolds(real, made[:2], nearest=1)
    assert (few.precision, few.density) == (1, 2)
    assert few.recall == 1 / 2  # 4 and 30 lie in no ball of 0.5 or 1.5
    assert few.coverage == 3 / 4  # but 1.5 lies in the ball of 4


def test_an_outlier_of_the_real_set_raises_precision_but_not_density() -> None:
    """The case for which density was made: one far real point has a huge ball."""
    real = torch.cat([normal(300, 2, 0), torch.tensor([[100.0, 0.0]])])
    made = normal(300, 2, 1) * 0.1 + torch.tensor([40.0, 0.0])
    found = manifolds(real, made)
    assert found.precision == 1 and found.density == pytest.approx(1 / 5)


def test_diversity_is_the_mean_distance_within_a_group() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [7.0, 0.0], [7.0, 0.0], [9.0, 9.0]])
    groups = torch.tensor([0, 0, 1, 1, 2])
    assert diversity(features, groups) == pytest.approx((5 + 0) / 2)
    assert diversity(features, torch.zeros(5, dtype=torch.int64)) > 5
    assert math.isnan(diversity(features, torch.arange(5)))


def test_diversity_of_a_normal_is_known() -> None:
    """Two draws of N(0, 1) differ by 2 / sqrt(pi) on average."""
    rows = normal(4000, 1, 3)
    assert diversity(rows, torch.arange(4000) % 8) == pytest.approx(2 / math.sqrt(math.pi), rel=0.02)
