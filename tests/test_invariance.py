"""The invariance term, which is not the paper's: its gradient, whom it moves, and the warps it is blind to."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.config import TrainConfig, preset
from fastinfogan.errors import UserError
from fastinfogan.invariance import PRIOR_PULL, PULL, TEMPERATURE, invariance, leaning
from fastinfogan.objective import Objective
from fastinfogan.precision import Precision
from fastinfogan.warp import random_affine
from tests.test_objective import Game

SPEC = LatentSpec(4, (Categorical(3), Uniform(1), Categorical(5)))


def warp(images: torch.Tensor, seed: int = 1, step: int = 0, row_offset: int = 0) -> torch.Tensor:
    return random_affine(images, seed=torch.tensor(seed), step=torch.tensor(step), row_offset=row_offset)


def answers(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 6, SPEC.head_dim, generator=generator, dtype=dtype)
    return one, other


def of_one_head(
    spec: LatentSpec, one: torch.Tensor, other: torch.Tensor, weight: float, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The term, and its gradients, where there are no rivals."""
    value, of_one, of_other = invariance(spec, one[None], other[None], weight, **options)
    return value, of_one[0], of_other[0]


def disagreement(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The swapped cross-entropies; targets by scaling rows and columns of probabilities, as Chizat et al. write it."""
    total = one.new_zeros(())
    for code in range(len(SPEC.categorical)):
        columns = SPEC.logit_columns(code)
        views = [one[:, columns], other[:, columns]]
        targets = []
        for logits in views:
            kernel = (logits.detach() / TEMPERATURE).exp()
            share, of_columns = len(logits) / logits.shape[1], kernel.new_ones(logits.shape[1])
            for _ in range(4):
                of_rows = 1 / (kernel @ of_columns)
                of_columns = (share / (of_rows @ kernel)) ** PULL
            scaled = kernel * of_columns
            targets.append(scaled / scaled.sum(1, keepdim=True))
        total = total + (F.cross_entropy(views[0], targets[1]) + F.cross_entropy(views[1], targets[0])) / 2
    return total


def test_the_term_and_both_its_gradients_are_autograds() -> None:
    one, other = (outputs.requires_grad_() for outputs in answers(0))
    expected = disagreement(one, other)
    gradients = torch.autograd.grad(expected, (one, other))
    value, *found = of_one_head(SPEC, one.detach(), other.detach(), 2.0)
    torch.testing.assert_close(value[0], expected.detach().float())
    for gradient, wanted in zip(found, gradients, strict=True):
        torch.testing.assert_close(gradient, 2.0 * wanted, atol=1e-6, rtol=1e-5)
        assert not gradient[:, SPEC.mean_columns].any() and not gradient[:, SPEC.log_std_columns].any()


def test_heads_have_nothing_to_do_with_each_other() -> None:
    views = [torch.stack(heads) for heads in zip(*(answers(seed) for seed in range(3)), strict=True)]
    values, *gradients = invariance(SPEC, *views, 2.0)
    for head in range(3):
        value, *alone = of_one_head(SPEC, views[0][head], views[1][head], 2.0)
        torch.testing.assert_close(values[head], value[0])
        for gradient, expected in zip(gradients, alone, strict=True):
            torch.testing.assert_close(gradient[head], expected)


def shares_of(answers: torch.Tensor) -> torch.Tensor:
    return answers.sum(0) / len(answers)


def test_answers_that_may_not_lean_have_exactly_the_shares_asked_for() -> None:
    logits = 3 * torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) + torch.tensor([4.0, 0, 0, -2, 1])
    assert shares_of(torch.softmax(logits, 1)).max() > 0.5
    for wanted in (torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), None):
        found = leaning(logits, 1.0, wanted, rounds=60)
        torch.testing.assert_close(found.sum(1), torch.ones(400))
        expected = torch.full((5,), 0.2) if wanted is None else wanted
        torch.testing.assert_close(shares_of(found), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("pull", [0.2, PRIOR_PULL, PULL])
def test_leaning_answers_are_the_optimum_of_the_unbalanced_transport(pull: float) -> None:
    """Found by descent: entropy and cost of the answers, rows fixed, columns at rho times their divergence."""
    generator = torch.Generator().manual_seed(0)
    n, k, rho = 12, 3, pull / (1 - pull)
    scores, shares = 2 * torch.randn(n, k, generator=generator), torch.tensor([0.5, 0.3, 0.2])
    free = torch.zeros(n, k, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        descent.zero_grad()
        answers = torch.softmax(free, 1)
        columns, wanted = answers.sum(0), n * shares.double()
        entropy = (answers * answers.log()).sum() - (answers * scores.double()).sum()
        total = entropy + rho * (columns * (columns / wanted).log()).sum()
        total.backward()
        return total

    descent.step(cost)
    found = leaning(scores, pull, shares, rounds=200)
    torch.testing.assert_close(found.double(), torch.softmax(free.detach(), 1), atol=1e-4, rtol=0)


def test_answers_that_q_is_sure_of_are_left_as_they_are() -> None:
    """Where exact shares would move them at any price."""
    logits = torch.zeros(100, 2)
    logits[:90, 0], logits[90:, 1] = 20.0, 20.0
    assert shares_of(leaning(logits, PULL)).tolist() == pytest.approx([0.9, 0.1], abs=1e-3)
    assert shares_of(leaning(logits, 1.0, rounds=60)).tolist() == pytest.approx([0.5, 0.5], abs=1e-2)


def test_a_category_that_is_chosen_too_seldom_is_given_the_rows_that_are_nearest() -> None:
    logits = torch.zeros(30, 3)
    logits[:, 2] = -2.0
    logits[:10, 2] += 1.0
    answers, plain = leaning(logits, PULL), torch.softmax(logits, 1)
    assert shares_of(plain)[2] < shares_of(answers)[2] < 1 / 3
    assert (answers > plain)[:, 2].all() and answers[:10, 2].min() > answers[10:, 2].max()


def test_a_category_that_nothing_chooses_is_given_exact_shares_too() -> None:
    scores = torch.zeros(30, 3)
    scores[:, 2] = -2e4
    scores[:10, 2] += 2.0
    shares = leaning(scores, 1.0, rounds=40)
    assert torch.isfinite(shares).all() and shares[:10, 2].sum() > shares[10:, 2].sum() / 2
    assert shares[:, 2].sum() == pytest.approx(10, rel=0.05)


def test_a_category_however_far_has_a_finite_share() -> None:
    logits = torch.zeros(30, 3)
    logits[:, 2] = -1e4
    answers = leaning(logits, PULL)
    assert torch.isfinite(answers).all() and answers[:, 2].max() < 1e-6
    torch.testing.assert_close(answers.sum(1), torch.ones(30))


def test_sure_and_equal_answers_in_equal_use_disagree_by_nothing() -> None:
    sure = torch.zeros(15, SPEC.head_dim)
    for code, k in enumerate(SPEC.categorical):
        first = SPEC.logit_columns(code).start
        sure[torch.arange(15), first + torch.arange(15) % k] = 1e4
    value, *gradients = of_one_head(SPEC, sure, sure, 1.0)
    torch.testing.assert_close(value, torch.zeros(1))
    assert not any(gradient.any() for gradient in gradients)


def test_processes_lean_over_all_their_rows() -> None:
    one, other = answers(1, torch.float32)
    whole = [of_one_head(SPEC, one, other, 1.0)]
    halves = [(one[:3], other[:3]), (one[3:], other[3:])]

    class Meeting:
        """Two threads that replace their tensors by the mean of both."""

        def __init__(self) -> None:
            self.barrier, self.sums = threading.Barrier(2), [torch.zeros(0)] * 2

        def average(self, rank: int, tensors: list[torch.Tensor]) -> None:
            self.sums[rank] = tensors[0].clone()
            self.barrier.wait(10)
            tensors[0].copy_((self.sums[0] + self.sums[1]) / 2)
            self.barrier.wait(10)

    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        parts = list(
            pool.map(lambda rank: of_one_head(SPEC, *halves[rank], 1.0, average=partial(meeting.average, rank)), (0, 1))
        )
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole[0][0])
    for view in (1, 2):  # gradients are averaged over the two processes
        torch.testing.assert_close(torch.cat([part[view] for part in parts]) / 2, whole[0][view])


def test_a_category_that_no_process_chooses_leaves_the_answers_finite() -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scores[:, 2] -= 500.0
    one, several = (leaning(scores, 0.9, average=average) for average in (None, lambda _: None))
    assert several.isfinite().all()
    torch.testing.assert_close(several, one)


def test_invariance_moves_the_trunk_and_q_alone_and_reports_the_disagreement() -> None:
    game = Game(Objective(invariance=1.0))
    before = game.snapshot()
    statistics = game.d_phase.update(game.images, game.fakes.detach(), game.latents, warp(game.images))
    assert game.moved_since(before) == {"trunk", "adversarial", "recognition"}
    assert statistics.shape == (4,) and statistics[3] > 0


def test_steps_of_invariance_bring_the_answers_together() -> None:
    game = Game(Objective(invariance=50.0, categorical_weight=0.0, continuous_weight=0.0))
    warped = warp(game.images)
    values = [game.d_phase.update(game.images, game.fakes.detach(), game.latents, warped)[3] for _ in range(12)]
    assert values[-1] < 0.9 * values[0]


def test_invariance_leaves_the_continuous_codes_to_the_generated_images() -> None:
    games = [Game(Objective(invariance=weight)) for weight in (0.0, 1.0)]
    for game in games:
        game.d_phase.optimiser.step = lambda *a, **k: None  # type: ignore[method-assign]
        game.d_phase.update(game.images, game.fakes.detach(), game.latents, warp(game.images))
    # The last layer's own input is the same: the weights have not moved yet.
    plain, invariant = (game.discriminator.recognition_head[-1].linear.weight.grad for game in games)
    assert plain is not None and invariant is not None
    torch.testing.assert_close(plain[3:], invariant[3:])
    assert not torch.allclose(plain[:3], invariant[:3])


def test_a_warp_is_small_and_differs_from_row_to_row_and_step_to_step() -> None:
    side = 28
    dot = torch.zeros(64, 1, side, side)
    dot[:, :, 13:15, 13:15] = 1.0  # the centre: only the shift moves it
    places = torch.arange(side, dtype=torch.float32)
    warped = warp(dot)[:, 0]
    mass = warped.sum((1, 2))
    x = (warped.sum(1) * places).sum(1) / mass - 13.5
    y = (warped.sum(2) * places).sum(1) / mass - 13.5
    limit = 0.07 * side * 1.5
    assert x.abs().max() < limit and y.abs().max() < limit
    assert x.std() > 0.5 and y.std() > 0.5
    assert not torch.equal(warp(dot, step=0), warp(dot, step=1))


def test_a_warp_turns_shears_scales_and_shifts_as_far_as_it_says() -> None:
    """Read off images of places: what lies at the centre, and beside and below it, in a warped one."""
    side, n = 32, 1000
    ramp = (2 * torch.arange(side) + 1) / side - 1
    places = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)]).expand(n, 2, side, side)
    seen = warp(places)[:, :, 15:17, 15:17]
    right, down = (((seen[..., i, j] - seen[..., 0, 0]) * side / 2).unbind(1) for i, j in ((0, 1), (1, 0)))
    angle, scale_x = torch.atan2(right[1], right[0]), torch.hypot(*right)
    scale_y = angle.cos() * down[1] - angle.sin() * down[0]
    shear = (angle.cos() * down[0] + angle.sin() * down[1]) / scale_y
    found = (
        (angle, math.radians(10)), (shear, 0.15), (scale_x - 1, 0.1), (scale_y - 1, 0.1), (seen.mean((2, 3)), 0.14),
    )  # fmt: skip
    for value, most in found:
        for one in (value, -value):
            assert 0.95 * most < one.max() < 1.01 * most


def test_the_invariance_term_is_scaled_with_the_rest_in_float16() -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        objective = Objective(categorical_weight=0.0, continuous_weight=0.0, invariance=1.0)
        game = Game(objective, Precision(torch.device("cpu"), dtype, "a test"))
        game.d_phase.scaler.step = lambda _: None  # type: ignore[assignment, method-assign]
        game.d_phase.update(game.images, game.fakes.detach(), game.latents, warp(game.images))
        scale = game.d_phase.loss_scale()
        found.append(game.discriminator.recognition_head[-1].linear.weight.grad / (1.0 if scale is None else scale))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.02 * found[0].abs().max().item())


def test_warps_do_not_depend_on_the_split_over_ranks() -> None:
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(warp(images)[3:], warp(images[3:], row_offset=3))


def test_a_constant_image_stays_as_it_is() -> None:
    images = torch.full((3, 3, 8, 8), -1.0)
    torch.testing.assert_close(warp(images), images)


def test_the_paper_preset_does_not_use_it_and_the_quick_start_does() -> None:
    assert preset("mnist-paper").objective.invariance == 0.0
    assert preset("mnist").objective.invariance > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(invariance=-1.0), "--invariance must be 0 or more, got -1.0"),
        (TrainConfig(invariance=1.0, trunk_mi=False), "add --trunk-mi"),
    ],
)
def test_an_invariance_that_cannot_work_is_refused(config: TrainConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check()
