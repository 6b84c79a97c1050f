"""A generator whose codes are known factors is found to have them, by a regressor that never saw its images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.data.split import Factors
from fastinfogan.metrics import traversal
from fastinfogan.metrics.images import as_pixels
from fastinfogan.metrics.representation import r2
from fastinfogan.metrics.traversal import FactorReader, TraversalTruth, traversal_truth

SIDE = 16
CPU = torch.device("cpu")


def blob(angle: torch.Tensor, light: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    """Images ``[n, 1, 16, 16]`` in [0, 1]: a spot at ``angle`` radians on a circle, of some brightness and size."""
    grid = torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    square = (x - 4 * angle.cos()[:, None, None]).square() + (y - 4 * angle.sin()[:, None, None]).square()
    wide = torch.where(large > 0.5, 8.0, 2.0)[:, None, None]
    return ((0.3 + 0.7 * light)[:, None, None] * torch.exp(-square / wide))[:, None]


def rendered(n: int, seed: int) -> tuple[torch.Tensor, Factors]:
    rng = torch.Generator().manual_seed(seed)
    degrees, light = torch.rand(n, generator=rng) * 360, torch.rand(n, generator=rng)
    large = torch.randint(0, 2, (n,), generator=rng).float()
    values = torch.stack([degrees, light * 100, large, torch.full((n,), 7.0)], 1)
    factors = Factors(
        ("azimuth", "light", "size", "lens"),
        ("circular", "continuous", "categorical", "continuous"),
        values,
        (0.0, 0.0, 0.0, 7.0),
        (360.0, 100.0, 2.0, 8.0),
    )
    return as_pixels(blob(degrees.deg2rad(), light, large), (0, 1)), factors


SPEC = LatentSpec(1, (Categorical(2), Uniform(2), Gaussian(1)))


class Known(nn.Module):
    """c2 is the azimuth from 90 to 270 degrees, c3 the darkness, c4 nothing."""

    prior = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        c2, c3, _ = z[:, SPEC.continuous_columns].T
        return blob(math.pi + c2 * math.pi / 2, (1 - c3) / 2, z[:, 1]) * 2 - 1


@pytest.fixture(scope="module")
def reader() -> FactorReader:
    torch.set_num_threads(1)
    pixels, factors = rendered(2500, 0)
    return FactorReader(pixels, factors, epochs=6, seed=0, device=CPU)


@pytest.fixture(scope="module")
def found(reader: FactorReader) -> TraversalTruth:
    held_out = reader.quality(*rendered(500, 1))
    return traversal_truth(reader, held_out, Known(), SPEC, (-1.0, 1.0), seed=0, fit_images=2500)  # type: ignore[arg-type]


def test_the_regressor_reads_factors_off_images_that_it_was_not_trained_on(found: TraversalTruth) -> None:
    assert list(found.held_out) == ["azimuth", "light", "size"]  # the lens never varies
    assert found.held_out["azimuth"] > 0.97 and found.held_out["light"] > 0.9 and found.held_out["size"] > 0.97


def test_it_answers_in_the_units_of_the_factors(reader: FactorReader) -> None:
    pixels, factors = rendered(300, 2)
    azimuth, light, size = reader.read(pixels)
    off = np.angle(np.exp(1j * (np.arctan2(azimuth[:, 1], azimuth[:, 0]) - np.deg2rad(factors.values[:, 0].numpy()))))
    assert np.median(np.abs(off)) < np.deg2rad(8)
    assert np.median(np.abs(light[:, 0] - factors.values[:, 1].numpy())) < 10
    assert set(np.unique(size)) == {0.0, 1.0}


def test_a_code_that_is_a_factor_is_found_to_be_it_and_no_other(found: TraversalTruth) -> None:
    azimuth, darkness, nothing = (found.correlations[name] for name in ("c2", "c3", "c4"))
    assert azimuth["azimuth"] is not None and azimuth["azimuth"] > 0.95  # though an arctangent jumps at 180
    assert darkness["light"] is not None and darkness["light"] < -0.95
    assert abs(azimuth["light"] or 0) < 0.3 and abs(darkness["azimuth"] or 0) < 0.3
    assert abs(nothing["light"] or 0) < 0.02  # the very same images at every value
    assert all(of["size"] is None for of in found.correlations.values())


class Elsewhere(Known):
    """c3 is the darkness, from another one on for every noise; the other codes are nothing."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        noise, (_, c3, _) = z[:, 0], z[:, SPEC.continuous_columns].T
        light = 0.5 - 0.1 * c3 + 0.39 * noise
        return blob(torch.zeros_like(c3), light, torch.zeros_like(c3)) * 2 - 1


def test_what_a_code_does_to_each_row_is_told_apart_from_what_all_rows_have_in_common(reader: FactorReader) -> None:
    certain = dict.fromkeys(reader.names, 1.0)
    found = traversal_truth(reader, certain, Elsewhere(), SPEC, (-1.0, 1.0), seed=0, fit_images=1)  # type: ignore[arg-type]
    assert -0.6 < (found.correlations["c3"]["light"] or 0) < -0.05
    assert (found.within["c3"]["light"] or 0) < -0.95 and abs(found.within["c4"]["light"] or 0) < 0.1
    assert all(of["azimuth"] is None and of["size"] is None for of in found.within.values())
    assert f"light {found.within['c3']['light']:+.2f} (c3)" in "\n".join(found.lines())


def test_of_a_factor_that_the_regressor_cannot_read_nothing_is_said(reader: FactorReader) -> None:
    """On noise the largest of 36 cuts of a circle always correlates with something."""
    unread = {"azimuth": 0.01, "light": 0.9, "size": 0.9}
    found = traversal_truth(reader, unread, Known(), SPEC, (-1.0, 1.0), seed=0, fit_images=1)  # type: ignore[arg-type]
    assert all(of["azimuth"] is None and of["light"] is not None for of in found.correlations.values())
    assert all(of["azimuth"] is None for of in found.within.values())
    line = next(line for line in found.lines() if line.strip().startswith("azimuth"))
    assert line.split() == ["azimuth", "0.010", "-", "-", "-"]


def test_every_code_is_swept_over_its_own_range_with_the_rest_held(
    reader: FactorReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        traversal, "render", lambda g, z, r: (seen.append(z), torch.zeros(len(z), SIDE, SIDE, 1).byte())[1]
    )
    monkeypatch.setattr(traversal, "ROWS", 3)
    traversal_truth(reader, dict.fromkeys(reader.names, 1.0), Known(), SPEC, (-1.0, 1.0), seed=0, fit_images=1)  # type: ignore[arg-type]
    assert len(seen) == 3
    for place, (z, most) in enumerate(zip(seen, (1.0, 1.0, 2.0), strict=True)):
        rows = z.view(3, traversal.VALUES, SPEC.dim)
        assert len(rows[:, 0, : SPEC.noise].unique(dim=0)) == 3  # every row has noise of its own
        column = SPEC.continuous_columns.start + place
        torch.testing.assert_close(rows[0, :, column], torch.linspace(-most, most, traversal.VALUES))
        others = [i for i in range(SPEC.dim) if i != column]
        assert (rows[:, :, others] == rows[:, :1, others]).all()


def test_the_table_says_how_far_the_regressor_can_be_believed(found: TraversalTruth) -> None:
    text = "\n".join(found.lines())
    assert "azimuth" in text and "its R2" in text and "2,500 training images" in text
    assert f"{found.held_out['light']:.3f}" in text and f"{found.correlations['c3']['light']:+.2f}" in text


def test_nothing_is_explained_where_nothing_varies() -> None:
    assert math.isnan(r2(np.full((5, 1), 1.5), np.ones((5, 1))))
