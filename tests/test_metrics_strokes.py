"""Slant and width are those that the strokes were drawn with, and the correlation with a code is the known one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fastinfogan.metrics import strokes
from fastinfogan.metrics.images import Generated
from fastinfogan.metrics.strokes import rank_correlation, slant, stroke_correlations, width

FINE = 16  # points per pixel of the drawing, averaged: smooth edges as a scanner gives


def stroke(lean: float, wide: float, *, bow: float = 0.0) -> torch.Tensor:
    """One stroke ``[28, 28, 1]`` from top to bottom, sheared by ``lean`` degrees, ``wide`` pixels measured across."""
    side = 28 * FINE
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    shear = math.tan(math.radians(lean))
    # The horizontal extent of a band that is ``wide`` across.
    half = wide / math.cos(math.radians(lean)) / 2 * FINE
    for row in range(4 * FINE, 24 * FINE):
        up = 14 * FINE - row
        middle = 14 * FINE + shear * up + bow * FINE * math.cos(up / (10 * FINE) * math.pi)
        draw.line([(middle - half, row), (middle + half, row)], fill=255)
    return torch.from_numpy(np.array(canvas.resize((28, 28), Image.Resampling.BOX)))[..., None]


@pytest.mark.parametrize("lean", [-35, -10, 0, 5, 20, 40])
@pytest.mark.parametrize("wide", [1.5, 4.0])
@pytest.mark.parametrize("bow", [0.0, 3.0])
def test_the_slant_of_a_drawn_stroke_is_found(lean: float, wide: float, bow: float) -> None:
    (found,) = slant(stroke(lean, wide, bow=bow)[None])
    assert found == pytest.approx(lean, abs=0.5)


def ring(radius: float, wide: float) -> torch.Tensor:
    """A circular stroke ``[28, 28, 1]``, which has no ends."""
    y, x = torch.meshgrid(*[torch.arange(28 * FINE) / FINE - 14] * 2, indexing="ij")
    inked = ((x.square() + y.square()).sqrt() - radius).abs() < wide / 2
    return (inked.float().reshape(28, FINE, 28, FINE).mean((1, 3)) * 255).round().byte()[..., None]


@pytest.mark.parametrize("wide", [1.5, 2.0, 3.0, 4.5, 6.0])
@pytest.mark.parametrize("radius", [5.0, 8.3])
def test_the_width_of_a_drawn_ring_is_found(wide: float, radius: float) -> None:
    (found,) = width(ring(radius, wide)[None])
    assert found == pytest.approx(wide, abs=0.25)  # one point of the enlarged image


@pytest.mark.parametrize("wide", [2.0, 4.0, 6.0])
def test_the_two_ends_shorten_the_mean_distance_by_the_known_amount(wide: float) -> None:
    """Of a rectangle the mean distance to the edge is w / 4 - w^2 / (12 length)."""
    (found,) = width(stroke(0, wide)[None])
    assert found == pytest.approx(wide - wide**2 / (3 * 20), abs=0.25)


def test_a_wider_stroke_measures_wider_whatever_its_slant() -> None:
    drawn = torch.stack([stroke(lean, wide) for wide in (2.0, 2.5, 3.0, 3.5) for lean in (-25, 25)])
    found = width(drawn).reshape(4, 2)
    assert (found[1:].min(1) > found[:-1].max(1)).all()


def test_an_empty_image_has_neither() -> None:
    blank = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    assert np.isnan(slant(blank)).all() and np.isnan(width(blank)).all()


def test_ink_at_the_edge_of_the_image_ends_there() -> None:
    band = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    band[:, :, :4] = 255
    assert width(band)[0] == pytest.approx(4, abs=0.5)


def digits(n: int = 60) -> Generated:
    """c2 leans the stroke, in category 1 from another upright; c3 narrows it."""
    rng = np.random.default_rng(0)
    codes = rng.uniform(-1, 1, (n, 2))
    categories = rng.integers(2, size=n)
    drawn = [stroke(15 * c2 + 60 * k - 30, 3 - c3) for (c2, c3), k in zip(codes, categories, strict=True)]
    return Generated(torch.stack(drawn), torch.tensor(categories)[:, None], torch.tensor(codes).float())


def test_the_codes_that_drew_the_strokes_are_found_out() -> None:
    found = stroke_correlations(digits(), ("c2", "c3"))
    assert found.within["c2"]["slant"] > 0.99
    assert 0.2 < found.overall["c2"]["slant"] < 0.8  # the categories lean by more than the code moves
    assert found.overall["c3"]["width"] < -0.95 and found.within["c3"]["width"] < -0.95
    assert abs(found.within["c2"]["width"]) < 0.4 and abs(found.within["c3"]["slant"]) < 0.4
    assert found.samples == 60 and any("c3" in line and "width -" in line for line in found.lines())


def test_what_holds_within_a_category_is_the_mean_over_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one of two, of a third of the digits, the code leans the stroke to the other side."""
    codes, categories = torch.linspace(-1, 1, 60)[:, None], (torch.arange(60) % 3 == 0).long()[:, None]
    leans = (codes * (1 - 2 * categories))[:, 0].double().numpy()
    monkeypatch.setattr(strokes, "MEASURES", {"slant": lambda _: leans})
    found = stroke_correlations(Generated(torch.zeros(60, 1, 1, 1), categories, codes), ("c1",))
    assert found.within["c1"]["slant"] == pytest.approx(0) and found.overall["c1"]["slant"] > 0.1


def test_without_a_category_there_is_nothing_within() -> None:
    made = digits(10)
    found = stroke_correlations(made._replace(categories=made.categories[:, :0]), ("c1", "c2"))
    assert found.within == {} and len(found.lines()) == 3


def test_rank_correlation_asks_for_order_only_and_skips_what_was_not_measured() -> None:
    code = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(code, np.array([1.0, 10.0, np.nan, 11.0])) == pytest.approx(1)
    assert rank_correlation(code, np.array([4.0, 3.0, 2.0, -9.0])) == pytest.approx(-1)
    assert rank_correlation(code, np.ones(4)) == 0 and rank_correlation(code, np.full(4, np.nan)) == 0
