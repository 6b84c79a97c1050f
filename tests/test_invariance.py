"""The consistency term, which is not the paper's: its gradient, whom it moves, and the warps it is blind to."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.config import TrainConfig, preset
from fastinfogan.errors import UserError
from fastinfogan.objective import Objective, consistency
from fastinfogan.warp import random_affine
from tests.test_objective import Game

SPEC = LatentSpec(4, (Categorical(3), Uniform(1), Categorical(5)))


def warp(images: torch.Tensor, seed: int = 1, step: int = 0, row_offset: int = 0) -> torch.Tensor:
    return random_affine(images, seed=torch.tensor(seed), step=torch.tensor(step), row_offset=row_offset)


def test_the_divergence_and_its_gradient_are_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, SPEC.head_dim, generator=generator)
    recognition = torch.randn(6, SPEC.head_dim, generator=generator).requires_grad_(True)
    expected = sum(
        F.kl_div(
            F.log_softmax(recognition[:, SPEC.logit_columns(i)], 1),
            F.softmax(target[:, SPEC.logit_columns(i)], 1),
            reduction="batchmean",
        )
        for i in range(2)
    )
    assert isinstance(expected, torch.Tensor)
    (gradient,) = torch.autograd.grad(expected, recognition)
    divergence, found = consistency(SPEC, target, recognition.detach(), 2.0)
    torch.testing.assert_close(divergence[0], expected.detach())
    torch.testing.assert_close(found, 2.0 * gradient)
    assert not found[:, SPEC.mean_columns].any() and not found[:, SPEC.log_std_columns].any()


def test_equal_posteriors_diverge_by_nothing() -> None:
    outputs = torch.randn(4, SPEC.head_dim)
    divergence, gradient = consistency(SPEC, outputs, outputs, 1.0)
    assert divergence.item() == 0.0 and not gradient.any()


def test_consistency_moves_the_trunk_and_q_alone_and_reports_the_divergence() -> None:
    game = Game(Objective(consistency=1.0))
    before = game.snapshot()
    statistics = game.d_phase.update(game.images, game.fakes.detach(), game.latents, warp(game.images))
    assert game.moved_since(before) == {"trunk", "adversarial", "recognition"}
    assert statistics.shape == (4,) and statistics[3] > 0


def test_consistency_changes_what_q_learns() -> None:
    games = [Game(Objective(consistency=weight)) for weight in (0.0, 1.0)]
    for game in games:
        game.d_phase.optimiser.step = lambda *a, **k: None  # type: ignore[method-assign]
        game.d_phase.update(game.images, game.fakes.detach(), game.latents, warp(game.images))
    plain, consistent = (game.discriminator.recognition_head[-1].weight.grad for game in games)
    assert plain is not None and consistent is not None
    torch.testing.assert_close(plain[3:], consistent[3:])  # mean and log-std of the continuous code
    assert not torch.allclose(plain[:3], consistent[:3])


def test_a_warp_is_small_and_differs_from_row_to_row_and_step_to_step() -> None:
    side = 28
    dot = torch.zeros(64, 1, side, side)
    dot[:, :, 13:15, 13:15] = 1.0  # the centre: only the shift moves it
    places = torch.arange(side, dtype=torch.float32)
    warped = warp(dot)[:, 0]
    mass = warped.sum((1, 2))
    x = (warped.sum(1) * places).sum(1) / mass - 13.5
    y = (warped.sum(2) * places).sum(1) / mass - 13.5
    limit = 0.07 * side * 1.4
    assert x.abs().max() < limit and y.abs().max() < limit
    assert x.std() > 0.5 and y.std() > 0.5
    assert not torch.equal(warp(dot, step=0), warp(dot, step=1))


def test_warps_do_not_depend_on_the_split_over_ranks() -> None:
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(warp(images)[3:], warp(images[3:], row_offset=3))


def test_a_constant_image_stays_as_it_is() -> None:
    images = torch.full((3, 3, 8, 8), -1.0)
    torch.testing.assert_close(warp(images), images)


def test_the_paper_preset_does_not_use_it_and_the_quick_start_does() -> None:
    assert preset("mnist-paper").objective.consistency == 0.0
    assert preset("mnist").objective.consistency == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(consistency=-1.0), "--consistency must be 0 or more, got -1.0"),
        (TrainConfig(consistency=1.0, trunk_mi=False), "add --trunk-mi"),
    ],
)
def test_a_consistency_that_cannot_work_is_refused(config: TrainConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check()
