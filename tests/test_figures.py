"""A traversal varies one code and nothing else; figures are the same for the same seed and readable as PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastinfogan import Categorical, LatentSpec, Uniform, figures
from fastinfogan.config import TrainConfig
from fastinfogan.figures import curves_figure, grid, sample_figure, save_figures, traversal, traversal_figure
from fastinfogan.generate import fix_codes, interpolate
from fastinfogan.networks import Generator, build
from fastinfogan.ops import sample_latents, unpack_codes

SPEC = LatentSpec(5, (Categorical(4), Uniform(2), Categorical(13)))
CATEGORICAL = {0: 4, 1: 13}  # c1 and c2; c3 and c4 are continuous


class Identity(nn.Module):
    """A generator whose image is its latents."""

    prior = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, None, None, :]


@pytest.fixture
def generator(tiny_networks: None) -> Generator:
    config = TrainConfig(noise=5)
    return build(config.network_tables, SPEC, seed=0)[0].eval()


@pytest.mark.parametrize("code", range(4))
def test_a_row_keeps_its_noise_and_only_the_traversed_code_varies(code: int) -> None:
    images, labels = traversal(Identity(), SPEC, code, seed=1)  # type: ignore[arg-type]
    columns = CATEGORICAL.get(code, 10)
    assert len(labels) == columns and images.shape == (10 * columns, 1, 1, SPEC.dim)
    rows = images.view(10, columns, SPEC.dim)
    own = SPEC.one_hot_columns(code) if code < 2 else slice(SPEC.dim - 4 + code, SPEC.dim - 3 + code)
    others = torch.ones(SPEC.dim, dtype=torch.bool)
    others[own] = False
    assert torch.equal(rows[:, :, others], rows[:, :1, others].expand(-1, columns, -1))
    values = torch.eye(columns) if code < 2 else torch.linspace(-2, 2, 10)[:, None]
    torch.testing.assert_close(rows[:, :, own], values.expand(10, -1, -1))
    noise = rows[:, 0, : SPEC.noise]
    assert len(noise.unique(dim=0)) == 10  # each row has noise of its own


def test_columns_are_labelled_with_the_values() -> None:
    labels = [traversal(Identity(), SPEC, code, seed=1)[1] for code in range(4)]  # type: ignore[arg-type]
    assert labels[0] == ["0", "1", "2", "3"] and labels[1] == [str(i) for i in range(13)]
    assert labels[2] == labels[3] and labels[2][0] == "-2.0" and labels[2][-1] == "+2.0" and len(labels[2]) == 10


def test_where_a_continuous_code_runs_rows_show_every_category() -> None:
    images, _ = traversal(Identity(), SPEC, 2, seed=1)  # type: ignore[arg-type]
    _, categories, _ = unpack_codes(SPEC, images.flatten(1))
    assert categories[::10, 0].tolist() == [i % 4 for i in range(10)]
    without = LatentSpec(3, (Uniform(1),))
    assert traversal(Identity(), without, 0, seed=1)[0].shape == (100, 1, 1, 4)  # type: ignore[arg-type]


def test_where_a_category_runs_rows_keep_the_others_that_were_drawn() -> None:
    generator = Identity()
    images, labels = traversal(generator, SPEC, 1, seed=5)  # type: ignore[arg-type]
    kept = unpack_codes(SPEC, images[:, 0, 0])[1][:, 0].view(10, len(labels))
    drawn = unpack_codes(SPEC, figures.latents(generator, SPEC, 10, 5))[1][:, 0]  # type: ignore[arg-type]
    assert torch.equal(kept, drawn[:, None].expand_as(kept)) and not torch.equal(drawn, torch.arange(10) % 4)


def test_a_grid_puts_images_in_rows_and_maps_the_range_to_bytes() -> None:
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(-1, 1, 28, 28)
    picture = grid(images, 4, (-1.0, 1.0))
    assert picture.size == (4 * 56, 2 * 56) and picture.mode == "RGB"  # 28 pixels are enlarged to 56
    pixels = np.asarray(picture)[28::56, 28::56, 0]
    assert pixels.tolist() == [[0, 51, 102, 153], [204, 255, 0, 0]]  # the last two places stay black
    assert np.unique(np.asarray(picture)[:56, 56:112]).tolist() == [51]


def test_a_grid_keeps_colours_and_clamps_what_is_out_of_range() -> None:
    images = torch.tensor([[-3.0, 0.5, 7.0]]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    picture = grid(images, 1, (0.0, 1.0))
    assert picture.size == (64, 64) and np.asarray(picture)[10, 10].tolist() == [0, 128, 255]


def test_a_labelled_grid_has_a_white_bar_with_ink_above_every_column() -> None:
    images = torch.zeros(20, 1, 28, 28)
    picture = grid(images, 10, (0.0, 1.0), [str(i) for i in range(10)], "c12")
    bar, margin = picture.height - 2 * 56, picture.width - 10 * 56
    assert bar > 0 and margin > 0
    pixels = np.asarray(picture)
    assert pixels[bar:, margin:].max() == 0  # the images, and no label over them
    for column in range(10):
        above = pixels[:bar, margin + column * 56 : margin + (column + 1) * 56]
        assert above.min() < 128 and above.max() == 255
    assert pixels[:bar, :margin].min() < 128  # the title


def test_figures_are_a_function_of_the_seed(generator: Generator) -> None:
    def drawn(seed: int) -> list[bytes]:
        pictures = [sample_figure(generator, SPEC, (0.0, 1.0), seed)]
        pictures += [traversal_figure(generator, SPEC, code, (0.0, 1.0), seed) for code in range(4)]
        return [picture.tobytes() for picture in pictures]

    once = drawn(1)
    assert once == drawn(1)
    assert all(one != other for one, other in zip(once, drawn(2), strict=True))


def test_pictures_show_latents_that_training_did_not_draw(generator: Generator) -> None:
    drawn = figures.latents(generator, SPEC, 10, seed=1)
    trained_on = sample_latents(SPEC, 10, seed=1, step=0, device=torch.device("cpu")).z
    assert drawn.shape == trained_on.shape and not (drawn == trained_on)[:, : SPEC.noise].any()


def test_figures_do_not_change_the_generator(generator: Generator, tmp_path: Path) -> None:
    generator.train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    paths = save_figures(generator, SPEC, (0.0, 1.0), 0, tmp_path / "new", "final")
    assert generator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert [path.name for path in paths] == ["samples-final.png", *(f"traversal-c{i}-final.png" for i in (1, 2, 3, 4))]
    sizes = [Image.open(path).size for path in paths]
    assert sizes[0] == (560, 560)
    for (width, height), columns in zip(sizes[1:], (4, 13, 10, 10), strict=True):
        assert height == 560 + 18 and 0 < width - columns * 56 < 60
    generator.eval()
    save_figures(generator, SPEC, (0.0, 1.0), 0, tmp_path / "new", "again")
    assert not generator.training
    assert (tmp_path / "new" / "samples-again.png").read_bytes() == paths[0].read_bytes()


def test_images_do_not_depend_on_how_many_are_made_at_once(generator: Generator) -> None:
    z = sample_latents(SPEC, 21, seed=0, step=0).z
    torch.testing.assert_close(figures.generate(generator, z, batch=5), figures.generate(generator, z))


def test_the_curve_shows_every_code_and_its_ceiling(tmp_path: Path) -> None:
    lines = [{"step": s, "mi/total": s / 5, **{f"mi/c{i}": s / 10 * i for i in (1, 2, 3, 4)}} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4}]))
    (axes,) = curves_figure(tmp_path / "metrics.jsonl", SPEC).axes
    drawn = axes.get_lines()
    for i, entropy in enumerate(SPEC.entropies):
        curve, ceiling = drawn[2 * i : 2 * i + 2]
        assert curve.get_label() == f"c{i + 1}" and curve.get_xdata().tolist() == [1, 2, 3]
        assert curve.get_ydata() == pytest.approx([s / 10 * (i + 1) for s in (1, 2, 3)])
        assert set(ceiling.get_ydata()) == {entropy}
    assert "nats" in axes.get_ylabel()


def test_the_ceiling_of_a_learnt_prior_is_the_curve_of_its_entropy(tmp_path: Path) -> None:
    values = {f"mi/c{i}": 0.5 for i in (1, 2, 3, 4)}
    lines = [{"step": s, "mi/total": 2, "entropy/c1": 1.4 - s / 10, "entropy/c2": 2.5, **values} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (axes,) = curves_figure(tmp_path / "metrics.jsonl", SPEC).axes
    ceilings = axes.get_lines()[1::2]
    assert ceilings[0].get_xdata().tolist() == [1, 2, 3]
    assert ceilings[0].get_ydata() == pytest.approx([1.3, 1.2, 1.1]) and set(ceilings[1].get_ydata()) == {2.5}
    assert set(ceilings[2].get_ydata()) == {SPEC.entropies[2]}


def test_an_interpolation_runs_straight_from_end_to_end() -> None:
    start, end = torch.randn(3, 7), torch.randn(3, 7)
    path = interpolate(start, end, 5).view(3, 5, 7)
    torch.testing.assert_close(path[:, 0], start)
    torch.testing.assert_close(path[:, -1], end)
    torch.testing.assert_close(path[:, 2], (start + end) / 2)


def test_codes_that_are_set_hold_and_the_rest_stays() -> None:
    z = sample_latents(SPEC, 6, seed=0, step=0).z
    fixed = fix_codes(SPEC, z, {1: 12.0, 3: -1.5})
    noise, categories, continuous = unpack_codes(SPEC, fixed)
    noise_before, categories_before, continuous_before = unpack_codes(SPEC, z)
    assert (categories[:, 1] == 12).all() and (continuous[:, 1] == -1.5).all()
    assert torch.equal(noise, noise_before) and torch.equal(categories[:, 0], categories_before[:, 0])
    assert torch.equal(continuous[:, 0], continuous_before[:, 0])
