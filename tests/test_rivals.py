"""Q's rivals: heads that learn as Q's does, until the one that stands best takes its place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from recorder import assert_same_state, captured
from short_runs import MakeConfig, MakeTrainer

from fastinfogan import Categorical, LatentSpec, Uniform, rivals
from fastinfogan.capture import WARM_UP
from fastinfogan.config import preset
from fastinfogan.invariance import invariance
from fastinfogan.networks import Block, Blocks, build
from fastinfogan.objective import Objective
from fastinfogan.rivals import APART, CLEARLY, LATELY, ROUNDS
from tests.test_invariance import warp
from tests.test_objective import SPEC, TINY, Game

OBJECTIVE = Objective(invariance=2.0)
MOMENTS = ("exp_avg", "exp_avg_sq")


def game(rivals: int) -> Game:
    return Game(OBJECTIVE, tables=replace(TINY, rivals=rivals))


def play(one: Game, iterations: int = 1) -> None:
    for _ in range(iterations):
        one.d_phase.update(one.images, one.fakes.detach(), one.latents, warp(one.images))


def moved(one: Game, act: Callable[[], object]) -> list[bool]:
    """Of each head, whether ``act`` moved its weights."""

    def weights() -> list[list[torch.Tensor]]:
        return [[weight.detach().clone() for weight in head.parameters()] for head in heads(one)]

    before = weights()
    act()
    return [
        any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
        for old, new in zip(before, weights(), strict=True)
    ]


def heads(one: Game) -> list[Blocks]:
    return one.discriminator.recognition_heads


def test_every_head_starts_elsewhere() -> None:
    first = [head[-1].linear.weight for head in build(replace(TINY, rivals=3), SPEC, seed=0)[1].recognition_heads]
    assert len(first) == 4 and not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))


def test_all_heads_learn_until_q_learns_alone() -> None:
    one = game(rivals=2)
    assert moved(one, lambda: play(one)) == [True, True, True]
    assert moved(one, lambda: one.g_phase.update(one.fakes, one.latents)) == [False, False, False]
    one.d_phase.let_learn(heads(one)[:1])
    assert moved(one, lambda: play(one)) == [True, False, False]


@pytest.mark.parametrize("rivals", [1, 3])
@pytest.mark.parametrize("fixed_std", [False, True])
def test_rivals_that_are_q_s_twins_change_nothing_for_the_trunk(rivals: int, fixed_std: bool) -> None:
    """Heads share a weight, so that D and Q stand to each other as without rivals."""
    objective = replace(OBJECTIVE, fixed_std=fixed_std, categorical_weight=0.7, continuous_weight=0.4, q_share=0.5)
    alone, beside = (Game(objective, tables=replace(TINY, rivals=number)) for number in (0, rivals))
    beside.discriminator.load_state_dict(alone.discriminator.state_dict(), strict=False)
    for twin in heads(beside)[1:]:
        twin.load_state_dict(heads(beside)[0].state_dict())
    for one in (alone, beside):
        one.d_phase.optimiser.step = lambda *_, **__: None  # type: ignore[method-assign]
        play(one)
    for part in ("trunk", "adversarial_head"):
        for weight, other in zip(
            *(getattr(one.discriminator, part).parameters() for one in (alone, beside)), strict=True
        ):
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-6, rtol=1e-4)
    for weight, *others in zip(*(head.parameters() for head in (*heads(alone), *heads(beside))), strict=True):
        for other in others:
            torch.testing.assert_close(weight.grad / (1 + rivals), other.grad, atol=1e-6, rtol=1e-4)


def test_float16_s_loss_scale_is_in_the_gradients_of_every_head() -> None:
    def gradients(scale: float | None) -> list[torch.Tensor]:
        one = game(rivals=2)
        one.d_phase.optimiser.step = lambda *_, **__: None  # type: ignore[method-assign]
        if scale is not None:
            one.d_phase.loss_scale = lambda: torch.tensor(scale)  # type: ignore[method-assign]
        play(one)
        return [weight.grad for weight in one.discriminator.parameters() if weight.grad is not None]

    for plain, scaled in zip(gradients(None), gradients(256.0), strict=True):
        torch.testing.assert_close(scaled, 256 * plain, atol=256e-6, rtol=1e-4)


def test_a_head_stands_as_its_own_term_was_of_late() -> None:
    one = game(rivals=2)
    warped = warp(one.images)
    with torch.no_grad():
        seen = one.discriminator.features(torch.cat([one.images, one.fakes, warped]), groups=3)
        on_images, _, on_warped = torch.stack([head(seen, 3) for head in heads(one)]).chunk(3, 1)
    expected, _, _ = invariance(SPEC, on_images, on_warped, 1.0)
    statistics = one.d_phase.update(one.images, one.fakes.detach(), one.latents, warped)
    torch.testing.assert_close(one.discriminator.standing, expected / LATELY)
    torch.testing.assert_close(statistics[3], expected[0])  # what is reported is Q's


def test_weights_keep_a_spectral_norm_of_one_when_heads_move() -> None:
    one = Game(OBJECTIVE, tables=replace(TINY, rivals=3, spectral=True))
    play(one, 3)
    discriminator, rivalry = one.discriminator, one.d_phase.rivalry
    spectral = discriminator.spectral
    assert spectral is not None

    def norms(index: int) -> list[float]:
        spectral.estimate(advance=False)
        layers = [cast(Block, block).linear for block in heads(one)[index]]
        return [torch.linalg.matrix_norm(layer.weight.detach(), 2).item() for layer in layers]

    for _ in range(300):
        spectral.estimate(advance=True)
    discriminator.standing.copy_(torch.tensor([0.9, 0.1, 0.8, 0.7]))
    discriminator.readings[1].copy_(discriminator.readings[1].new_tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    before = [norms(index) for index in range(4)]
    assert torch.tensor(before).allclose(torch.ones(4, len(before[0])), atol=1e-4)
    swapped, _ = rivalry.choose()
    assert swapped == 1
    assert torch.tensor([norms(index) for index in range(4)]).allclose(torch.ones(4, len(before[0])), atol=1e-4)
    rivalry.vary(3)
    # A variant's last layer is another matrix, of which its vectors are a first guess; its first layer is Q's.
    assert torch.tensor([norms(index)[:-1] for index in range(4)]).allclose(torch.ones(4, 1), atol=1e-4)


# One kind in the values 0 and 2, which warps take for each other, and maybe two kinds in value 1, which is used most.
# More images of 0 have a warp of 1, which seldom has one of 0, and for its size has few.
MIXED = torch.tensor([[0.15, 0.2, 0.1], [0.0, 0.5, 0.01], [0.09, 0.0, 0.15]])


def test_the_worse_half_of_the_heads_become_variants_of_q_s() -> None:
    one = game(rivals=3)
    play(one, 3)
    one.discriminator.standing.copy_(torch.tensor([0.3, 0.2, 0.4, 0.5]))
    one.discriminator.confusions.copy_(torch.stack([MIXED, EVEN, EVEN, EVEN]))
    kept = one.d_phase.optimiser.state[heads(one)[0][-1].linear.weight]["exp_avg"]
    with torch.no_grad():
        heads(one)[0][-1].linear.bias.copy_(torch.tensor([0.0, 9.0, 4.0, 5.0, 6.0]))
    assert moved(one, lambda: one.d_phase.rivalry.vary(7)) == [False, False, True, True]
    torch.testing.assert_close(one.discriminator.standing, torch.tensor([0.3, 0.2, 0.3, 0.3]))
    first, rest = heads(one)[0], heads(one)[2:]
    for name, wanted in first.state_dict().items():
        if not name.startswith(f"{len(first) - 1}."):  # all but the last layer
            assert all(torch.equal(head.state_dict()[name], wanted) for head in rest)
    before = first[-1].linear.weight.detach()
    merged = (before[0] + before[2]) / 2
    # The worst head splits what it has merged, the second worst the value that is used most.
    (again, crowded) = (heads(one)[index][-1].linear.weight.detach() for index in (3, 2))
    torch.testing.assert_close((again[0] + again[2]) / 2, merged)
    torch.testing.assert_close(again[1], before[1])
    torch.testing.assert_close(crowded[0], merged)
    torch.testing.assert_close((crowded[1] + crowded[2]) / 2, before[1])
    for apart, spread in (((again[0] - again[2]) / 2, merged.std()), ((crowded[1] - crowded[2]) / 2, before[1].std())):
        assert 0.1 < apart.norm() / (APART * spread * len(apart) ** 0.5) < 3
    for variant in (again, crowded):
        torch.testing.assert_close(variant[3:], before[3:])  # the continuous code's outputs
    biases = [heads(one)[index][-1].linear.bias.tolist() for index in (3, 2)]
    assert biases == [[2, 9, 2, 5, 6], [2, 9, 9, 5, 6]]
    for index, new in ((3, [0, 2]), (2, [0, 1, 2])):  # a new value has no momentum, the others have Q's
        momentum = one.d_phase.optimiser.state[heads(one)[index][-1].linear.weight]["exp_avg"]
        old = [row for row in range(len(before)) if row not in new]
        assert kept.any(1).all() and not momentum[new].any() and torch.equal(momentum[old], kept[old])


def test_no_variant_splits_the_value_that_it_has_freed() -> None:
    """That would give back one of the two that were merged. After both others comes the merged value again."""
    one = game(rivals=5)
    play(one, 2)
    one.discriminator.standing.copy_(torch.tensor([0.1, 0.1, 0.1, 0.3, 0.4, 0.5]))
    one.discriminator.confusions.copy_(MIXED.expand(6, 3, 3))
    one.d_phase.rivalry.vary(7)
    before, third = (heads(one)[index][-1].linear.weight.detach() for index in (0, 3))
    torch.testing.assert_close(third[0] + third[2], before[0] + before[2])
    torch.testing.assert_close(third[1], before[1])


# Of the second code, as the outputs and the codes' columns have it: behind the first one's three values.
PAIR = LatentSpec(4, (Categorical(3), Categorical(4), Uniform(1)))


def pair(rivals: int) -> Game:
    return Game(OBJECTIVE, tables=replace(TINY, rivals=rivals), spec=PAIR)


def test_values_of_several_codes_are_merged_and_split_each_among_its_own() -> None:
    one = pair(rivals=1)
    play(one, 2)
    mixed = torch.zeros(7, 7)
    mixed[:3, :3] = MIXED
    mixed[3:, 3:] = torch.tensor([[0.2, 0, 0, 0], [0, 0.2, 0, 0.15], [0, 0, 0.3, 0], [0, 0.15, 0, 0.2]])
    one.discriminator.confusions.copy_(mixed.expand(2, 7, 7))
    before = heads(one)[0][-1].linear.weight.detach().clone()
    one.d_phase.rivalry.vary(7)
    variant = heads(one)[1][-1].linear.weight.detach()
    for merged, freed in ((0, 2), (4, 6)):  # the only variant of two heads splits what it has merged
        torch.testing.assert_close(variant[merged] + variant[freed], before[merged] + before[freed])
        assert not torch.equal(variant[merged], before[merged])
    for kept in (1, 3, 5, 7, 8):
        assert torch.equal(variant[kept], before[kept])


def test_values_of_several_codes_are_named_each_among_its_own() -> None:
    one = pair(rivals=1)
    play(one, 2)
    one.discriminator.confusions.copy_((torch.eye(7) / 3).expand(2, 7, 7))
    one.discriminator.standing.copy_(torch.tensor([0.9, 0.1]))
    order = torch.tensor([1, 2, 0, 6, 3, 5, 4, 7, 8])  # the outputs that answer value 0, 1, ... of what G was given
    readings = torch.zeros(7, 7)
    readings[torch.arange(7), order[:7]] = 0.25
    readings[0, 5] = readings[6, 1] = 0.9  # what a value of one code goes with in the other names nothing
    one.discriminator.readings.copy_(readings.expand(2, 7, 7))
    before = heads(one)[1][-1].linear.weight.detach().clone()
    one.d_phase.rivalry.choose()
    assert torch.equal(heads(one)[0][-1].linear.weight.detach(), before[order])


def test_readings_of_several_codes_are_by_the_values_that_g_was_given() -> None:
    one = pair(rivals=1)
    play(one)
    values = torch.cat([one.latents.categories[:, :1], 3 + one.latents.categories[:, 1:]], 1)
    counts = torch.zeros(7).index_add_(0, values.flatten(), torch.ones(values.numel())) / 16
    found = one.discriminator.readings * LATELY
    for columns in (slice(0, 3), slice(3, 7)):  # an answer's shares sum to 1 within each code
        torch.testing.assert_close(found[:, :, columns].sum(-1), counts.expand(2, 7))


def test_variants_are_drawn_from_the_seed() -> None:
    def variant(seed: int) -> torch.Tensor:
        one = game(rivals=3)
        play(one)
        one.d_phase.rivalry.vary(seed)
        return torch.cat([head[-1].linear.weight for head in heads(one)]).detach()

    assert torch.equal(variant(7), variant(7)) and not torch.equal(variant(7), variant(8))


def state(one: Game, head: Blocks) -> list[torch.Tensor]:
    moments = [one.d_phase.optimiser.state[weight] for weight in head.parameters()]
    kept = [*head.state_dict().values(), *(moment[name] for moment in moments for name in MOMENTS)]
    return [tensor.detach().clone() for tensor in kept]


EVEN = torch.eye(3) / 3  # confusions: all values in equal use, an image's that of its warp


def as_it_answers(one: Game) -> None:
    """Every head has read each value of the code in the images that G made for it."""
    one.discriminator.readings.copy_(torch.eye(3).expand(3, 3, 3))
    one.discriminator.confusions.copy_(EVEN.expand(3, 3, 3))


@pytest.mark.parametrize("best", [0, 1, 2])
def test_q_and_the_head_that_stands_best_change_places_with_moments_and_statistics(best: int) -> None:
    one = game(rivals=2)
    play(one, 3)
    as_it_answers(one)
    one.discriminator.standing.copy_(torch.tensor([0.3, 0.3, 0.3])).index_fill_(0, torch.tensor([best]), 0.2)
    stood = one.discriminator.standing.tolist()
    wanted = [state(one, heads(one)[index]) for index in (best, 0)]
    chosen, standing = one.d_phase.rivalry.choose()
    assert chosen == best and standing == pytest.approx(stood)
    assert one.discriminator.standing[0] == min(stood) and sorted(one.discriminator.standing.tolist()) == sorted(stood)
    for found, of_head in zip((state(one, heads(one)[index]) for index in (0, best)), wanted, strict=True):
        assert len(found) == len(of_head) > 6
        assert all(torch.equal(a, b) for a, b in zip(found, of_head, strict=True))


@pytest.mark.parametrize(("share", "expected"), [(CLEARLY + 0.01, 0), (CLEARLY - 0.01, 2)])
def test_q_keeps_its_own_head_unless_another_is_clearly_better(share: float, expected: int) -> None:
    one = game(rivals=2)
    play(one)
    as_it_answers(one)
    one.discriminator.standing.copy_(torch.tensor([0.3, 0.4, 0.3 * share]))
    changed = moved(one, lambda: one.d_phase.rivalry.choose())
    assert changed == [expected == 2, False, expected == 2]


@pytest.mark.parametrize(("term", "expected"), [(0.1, 0), (0.05, 1)])
def test_a_head_with_two_kinds_in_a_value_lacks_what_its_uneven_use_costs(term: float, expected: int) -> None:
    """ln 3 minus the entropy of 2/3, 1/6, 1/6 is 0.2310 nats. Of what it answers to images, not to their warps."""
    one = game(rivals=1)
    play(one)
    mixed = torch.tensor([2 / 3, 1 / 6, 1 / 6])
    one.discriminator.confusions.copy_(torch.stack([EVEN, torch.outer(mixed, torch.ones(3) / 3)]))
    one.discriminator.standing.copy_(torch.tensor([0.3, term]))
    chosen, lacking = one.d_phase.rivalry.choose()
    assert chosen == expected
    assert lacking == pytest.approx([0.3, term + 0.2310], abs=1e-4)


def test_the_chosen_head_names_its_values_as_g_was_given_them() -> None:
    """Answers, and what the optimiser keeps of them, are those of the rival in another order."""
    one = game(rivals=2)
    play(one, 3)
    as_it_answers(one)
    one.discriminator.standing.copy_(torch.tensor([0.3, 0.3, 0.1]))
    # Of value 0 the rival says 2, of value 1 mostly 0, of value 2 as often 0 as 1: and 1 is what is left for it.
    readings = torch.tensor([[0.05, 0.05, 0.23], [0.2, 0.1, 0.03], [0.15, 0.15, 0.03]])
    one.discriminator.readings[2] = readings
    confusions = EVEN + torch.tensor([[0.0, 0.01, 0.02], [0.03, 0.0, 0.04], [0.05, 0.06, 0.0]])
    one.discriminator.confusions[2] = confusions
    order = torch.tensor([2, 0, 1, 3, 4])  # the continuous code's mean and log_std stay
    features = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = heads(one)[2].eval()(features)[:, order]
        of_rival = one.d_phase.optimiser.state[heads(one)[2][-1].linear.weight]
        moments = [of_rival[name].clone() for name in MOMENTS]
        one.d_phase.rivalry.choose()
        found = heads(one)[0].eval()(features)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    for name, moment in zip(MOMENTS, moments, strict=True):
        assert torch.equal(one.d_phase.optimiser.state[heads(one)[0][-1].linear.weight][name], moment[order])
    assert torch.equal(one.discriminator.readings[0], readings[:, order[:3]])
    assert torch.equal(one.discriminator.confusions[0], confusions[order[:3]][:, order[:3]])


def test_confusions_are_what_each_head_takes_an_image_and_its_warp_for() -> None:
    one = game(rivals=2)
    warped = warp(one.images)
    with torch.no_grad():
        seen = one.discriminator.features(torch.cat([one.images, one.fakes, warped]), groups=3)
        views = [[view[:, :3].softmax(1) for view in head(seen, 3).chunk(3)] for head in heads(one)]
    play(one)
    for found, (on_image, _, on_warp) in zip(one.discriminator.confusions * LATELY, views, strict=True):
        torch.testing.assert_close(found, sum(a[:, None] * b for a, b in zip(on_image, on_warp, strict=True)) / 16)


def test_readings_are_what_each_head_answers_to_generated_images_of_each_value() -> None:
    one = game(rivals=2)
    warped = warp(one.images)
    with torch.no_grad():
        seen = one.discriminator.features(torch.cat([one.images, one.fakes, warped]), groups=3)
        answers = torch.stack([head(seen, 3).chunk(3)[1][:, :3].softmax(1) for head in heads(one)])
    play(one)
    found = one.discriminator.readings * LATELY
    for value in range(3):
        of_value = one.latents.categories[:, 0] == value
        torch.testing.assert_close(found[:, value], answers[:, of_value].sum(1) / len(of_value))


def test_heads_stand_alike_in_all_processes() -> None:
    """So that all choose the same, also after a resume from the checkpoint of one of them."""
    one = game(rivals=2)
    given: list[torch.Tensor] = []

    def average(tensors: list[torch.Tensor]) -> None:
        if tensors[0].shape == (3,):  # not the gradients, nor the shares that answers lean towards
            given.append(tensors[0].clone())
            tensors[0] += torch.tensor([0.0, -5.0, 5.0])

    one.d_phase.average = average
    play(one)
    torch.testing.assert_close(one.discriminator.standing, (given[0] + torch.tensor([0.0, -5.0, 5.0])) / LATELY)


def test_the_last_round_is_captured_anew_and_bitwise_what_it_is_without_a_graph(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "CLEARLY", math.inf)  # the best head is chosen, however little better it is
    config = tiny_config(invariance=1.0, rivals=2, iterations=20)
    first, *_, last = (round(share * config.iterations) for share in ROUNDS)
    eager = make_trainer(config, tmp_path / "eager")
    graphed, recorder = captured(make_trainer(config, tmp_path / "graphed"))
    assert WARM_UP <= first < last  # heads change places, and become variants, between two replays
    for step in range(last + WARM_UP + 2):
        eager.iteration(step)
        graphed.iteration(step)
        assert_same_state(graphed, eager)
    assert recorder.replays == (last - WARM_UP) + 2


def test_the_quick_start_has_rivals_and_the_papers_presets_have_none() -> None:
    assert preset("mnist").rivals > 0
    assert not any(preset(name).rivals for name in ("mnist-paper", "svhn", "celeba", "faces", "chairs"))
