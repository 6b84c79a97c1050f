"""Both phases: whose parameters each switch moves, and that the step is the one that Eq. 6 asks for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.networks import Tables, build, conv, fc, up
from fastinfogan.objective import Descent, DiscriminatorPhase, GeneratorPhase, Objective
from fastinfogan.ops import head_loss, sample_latents
from fastinfogan.precision import Precision

SPEC = LatentSpec(4, (Categorical(3), Uniform(1)))
TINY = Tables(
    image=(1, 8, 8),
    trunk=[conv(4), conv(6, norm=True)],
    recognition=[fc(5, norm=True)],
    generator=[fc(8, norm=True, grid=2), up(6, norm=True), up(1, act="sigmoid")],
)
CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32, "a test")
DESCENT = Descent(1e-2, (0.5, 0.999))
SWITCHES = [
    Objective(trunk_mi=trunk, generator_mi=generator) for trunk, generator in itertools.product([True, False], repeat=2)
]


class Game:
    """Tiny networks, both phases and one batch."""

    def __init__(
        self,
        objective: Objective,
        precision: Precision = FP32,
        seed: int = 0,
        tables: Tables = TINY,
        spec: LatentSpec = SPEC,
    ) -> None:
        self.generator, self.discriminator = build(tables, spec, seed=seed)
        scaler = precision.gradient_scaler()
        self.d_phase = DiscriminatorPhase(self.discriminator, spec, objective, DESCENT, precision, scaler)
        self.g_phase = GeneratorPhase(self.generator, self.discriminator, spec, objective, DESCENT, precision, scaler)
        self.latents = sample_latents(spec, 16, seed=seed, step=0)
        self.images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        with precision.autocast():
            self.fakes = self.generator(self.latents.z)

    def parts(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "trunk": self.discriminator.trunk,
            "adversarial": self.discriminator.adversarial_head,
            "recognition": self.discriminator.recognition_head,
        }

    def snapshot(self) -> dict[str, list[torch.Tensor]]:
        return {name: [p.detach().clone() for p in module.parameters()] for name, module in self.parts().items()}

    def moved_since(self, before: dict[str, list[torch.Tensor]]) -> set[str]:
        now = self.snapshot()
        return {
            name for name in now if any(not torch.equal(a, b) for a, b in zip(before[name], now[name], strict=True))
        }


@pytest.mark.parametrize("objective", SWITCHES)
def test_each_phase_moves_exactly_the_parts_that_its_switches_say(objective: Objective) -> None:
    game = Game(objective)
    before = game.snapshot()
    game.d_phase.update(game.images, game.fakes.detach(), game.latents)
    assert game.moved_since(before) == {"trunk", "adversarial"} | ({"recognition"} if objective.trunk_mi else set())
    before = game.snapshot()
    game.g_phase.update(game.fakes, game.latents)
    assert game.moved_since(before) == {"generator"} | (set() if objective.trunk_mi else {"recognition"})


@pytest.mark.parametrize("objective", SWITCHES)
def test_the_g_phase_computes_no_weight_gradient_that_nobody_uses(objective: Objective) -> None:
    game = Game(objective)
    game.g_phase.update(game.fakes, game.latents)
    assert all(p.grad is None for p in game.discriminator.trunk.parameters())
    assert all(p.grad is None for p in game.discriminator.adversarial_head.parameters())
    q_has_gradients = [p.grad is not None for p in game.discriminator.recognition_head.parameters()]
    assert all(q_has_gradients) if not objective.trunk_mi else not any(q_has_gradients)
    assert all(p.requires_grad for p in game.discriminator.parameters())


def gradients(outputs: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(outputs, list(module.parameters()), retain_graph=True))


def test_q_learns_its_categories_with_its_share_and_g_with_the_whole_weight() -> None:
    objective = Objective(categorical_weight=3.0, continuous_weight=0.5, q_share=0.1)
    game, whole = Game(objective), Game(Objective(categorical_weight=0.3, continuous_weight=0.5))
    for one in (game, whole):
        one.d_phase.optimiser.step = lambda *a, **k: None  # type: ignore[method-assign]
        one.d_phase.update(one.images, one.fakes.detach(), one.latents)
    for one, other in zip(game.discriminator.parameters(), whole.discriminator.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert game.g_phase.code_weights.tolist() == [3.0, 0.5]


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_the_trunk_gets_the_gradient_of_the_information_if_and_only_if_asked(trunk_mi: bool) -> None:
    game = Game(Objective(trunk_mi=trunk_mi))
    reference = Game(Objective(trunk_mi=trunk_mi))
    d = reference.discriminator
    real = d.adversarial(d.features(reference.images))
    features = d.features(reference.fakes.detach())
    loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(d.adversarial(features)).mean()
    if trunk_mi:
        loss = loss + information_loss(d.recognition(features), reference)
    expected = gradients(loss, d.trunk)
    game.d_phase.optimiser.step = lambda *a, **k: None  # type: ignore[method-assign]
    game.d_phase.update(game.images, game.fakes.detach(), game.latents)
    for parameter, gradient in zip(game.discriminator.trunk.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def information_loss(q: torch.Tensor, game: Game) -> torch.Tensor:
    """-L_I without its constant H(c), written with torch.distributions alone."""
    categorical = torch.distributions.Categorical(logits=q[:, :3])
    normal = torch.distributions.Normal(q[:, 3:4], q[:, 4:5].exp())
    return -(
        categorical.log_prob(game.latents.categories[:, 0]).mean() + normal.log_prob(game.latents.continuous).mean()
    )


@pytest.mark.parametrize("generator_mi", [True, False])
@pytest.mark.parametrize("saturating", [True, False])
def test_g_descends_equation_6(generator_mi: bool, saturating: bool) -> None:
    objective = Objective(generator_mi=generator_mi, trunk_mi=generator_mi, saturating=saturating)
    game, reference = Game(objective), Game(objective)
    d = reference.discriminator
    features = d.features(reference.fakes)
    logits = d.adversarial(features)
    loss = nn.functional.logsigmoid(-logits).mean() if saturating else -nn.functional.logsigmoid(logits).mean()
    if generator_mi:
        loss = loss + information_loss(d.recognition(features), reference)
    expected = gradients(loss, reference.generator)
    game.g_phase.optimiser.step = lambda *a, **k: None  # type: ignore[method-assign]
    game.g_phase.update(game.fakes, game.latents)
    for parameter, gradient in zip(game.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_weights_are_per_kind_of_code() -> None:
    spec = LatentSpec(0, (Uniform(2), Categorical(3), Categorical(4)))
    weights = Objective(categorical_weight=2.0, continuous_weight=0.25).code_weights(spec, CPU)
    assert weights.tolist() == [2.0, 2.0, 0.25, 0.25]


def test_the_statistics_are_the_phases_own() -> None:
    game = Game(Objective())
    statistics = game.d_phase.update(game.images, game.fakes.detach(), game.latents)
    assert statistics.shape == (3,)
    assert statistics[1] == pytest.approx(0.69, abs=0.05) and statistics[2] == pytest.approx(0.69, abs=0.05)
    loss, real, fake, c1, c2, mi1, mi2 = game.g_phase.update(game.fakes, game.latents).tolist()
    assert real == 0.0
    assert loss == pytest.approx(fake + c1 + c2, rel=1e-5)
    assert (mi1, mi2) == pytest.approx((SPEC.entropies[0] - c1, SPEC.entropies[1] - c2), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_q_learns_to_read_the_code_in_every_precision(dtype: torch.dtype) -> None:
    precision = Precision(CPU, dtype, "a test")
    game = Game(Objective(), precision)
    first = last = 0.0
    for step in range(90):
        with precision.autocast():
            fakes = game.generator(game.latents.z)
        game.d_phase.update(game.images, fakes.detach(), game.latents)
        statistics = game.g_phase.update(fakes, game.latents)
        game.g_phase.scaler.update()
        last = statistics[5].item()
        first = first if step else last
    assert first < 0.2
    assert last > 0.8


def test_float16_gradients_are_scaled_and_the_losses_are_not() -> None:
    game = Game(Objective(), Precision(CPU, torch.float16, "a test"))
    statistics = game.d_phase.update(game.images, game.fakes.detach(), game.latents)
    assert game.d_phase.loss_scale() is not None and game.d_phase.loss_scale() > 1000
    assert statistics[1].item() == pytest.approx(0.69, abs=0.05)
    assert Game(Objective()).d_phase.loss_scale() is None


def test_codes_fed_to_g_are_the_targets_of_q() -> None:
    """A Q that reads the code perfectly off z must reach the entropy: its targets are z's own columns."""
    game = Game(Objective())
    z = game.latents.z
    q = torch.cat([60.0 * z[:, SPEC.one_hot_columns(0)], z[:, SPEC.continuous_columns], torch.full((16, 1), -9.0)], 1)
    loss = head_loss(
        SPEC, torch.zeros(16), recognition=q, categories=game.latents.categories, continuous=game.latents.continuous
    )
    assert loss.information.tolist() == pytest.approx(SPEC.entropies, abs=1e-6)


def test_networks_are_not_shared_between_the_phases_optimisers() -> None:
    for objective in SWITCHES:
        game = Game(objective)
        d, g = (
            {id(p) for group in phase.optimiser.param_groups for p in group["params"]}
            for phase in (game.d_phase, game.g_phase)
        )
        assert not d & g
        everything = [*game.generator.parameters(), *game.discriminator.parameters()]
        assert d | g == {id(p) for p in everything}


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_with_std_fixed_g_learns_the_same_whatever_the_log_std_says(trunk_mi: bool) -> None:
    found = []
    for log_std in (0.0, -3.0):
        game = Game(Objective(fixed_std=True, trunk_mi=trunk_mi))
        with torch.no_grad():
            game.discriminator.recognition_head[-1].linear.bias[4] = log_std
        game.g_phase.optimiser.step = lambda *_, **__: None  # type: ignore[method-assign]
        statistics = game.g_phase.update(game.fakes, game.latents)
        found.append([statistics, *(weight.grad for weight in game.generator.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None and torch.equal(one, other)


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_with_std_fixed_nothing_teaches_the_log_std(trunk_mi: bool) -> None:
    game = Game(Objective(fixed_std=True, trunk_mi=trunk_mi))
    for phase in (game.d_phase, game.g_phase):
        phase.optimiser.step = lambda *_, **__: None  # type: ignore[method-assign]
    game.d_phase.update(game.images, game.fakes.detach(), game.latents)
    if not trunk_mi:
        game.g_phase.update(game.fakes, game.latents)
    mean, log_std = game.discriminator.recognition_head[-1].linear.weight.grad[3:]
    assert mean.any() and not log_std.any()
