"""A learnt prior: what it draws, how often, which gradient reaches it, and what the bound makes of its entropy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from short_runs import MakeConfig, MakeTrainer

from fastinfogan import Categorical, Latents, LatentSpec, Uniform, checkpoint, evaluate, figures, generate
from fastinfogan.config import PRESETS, TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.invariance import PRIOR_PULL, PRIOR_TEMPERATURE, leaning
from fastinfogan.metrics.clustering import UNMATCHED
from fastinfogan.metrics.images import generated
from fastinfogan.metrics.information import information_bound
from fastinfogan.networks import build
from fastinfogan.ops import sample_latents
from fastinfogan.ops.philox import EVALUATION
from fastinfogan.prior import RATE, LearnedPrior, draw_latents
from tests.test_invariance import of_one_head

CPU = torch.device("cpu")
SPEC = LatentSpec(4, (Categorical(3), Uniform(2), Categorical(5)), learn_prior=True)
FREQUENCIES = ((0.7, 0.2, 0.1), (0.05, 0.05, 0.5, 0.39, 0.01))


def prior_of(*frequencies: tuple[float, ...], spec: LatentSpec = SPEC) -> LearnedPrior:
    made = LearnedPrior(spec)
    set_to(made, *frequencies)
    return made


def set_to(prior: LearnedPrior, *frequencies: tuple[float, ...]) -> None:
    with torch.no_grad():
        prior.frequencies.copy_(torch.tensor([p for of_code in frequencies for p in of_code]))


def draw(prior: LearnedPrior | None, rows: int, seed: int = 1, step: int = 0, **others: int) -> Latents:
    return draw_latents(SPEC, rows, prior, seed=seed, step=step, device=CPU, **others)


def test_a_prior_is_uniform_at_first() -> None:
    prior = LearnedPrior(SPEC)
    for k, probabilities in zip(SPEC.categorical, prior.probabilities(), strict=True):
        torch.testing.assert_close(probabilities, torch.full((k,), 1 / k))
    assert prior.entropies().tolist() == pytest.approx([math.log(3), math.log(5)])


def test_categories_are_drawn_as_often_as_the_prior_says() -> None:
    rows = 100_000
    categories = draw(prior_of(*FREQUENCIES), rows).categories
    for code, wanted in enumerate(FREQUENCIES):
        found = torch.bincount(categories[:, code], minlength=len(wanted)) / rows
        expected = torch.tensor(wanted)
        assert ((found - expected).abs() < 4 * (expected * (1 - expected) / rows).sqrt()).all(), found
    together = torch.bincount(categories[:, 0] * 5 + categories[:, 1], minlength=15).view(3, 5) / rows
    torch.testing.assert_close(together, torch.tensor(FREQUENCIES[0])[:, None] * torch.tensor(FREQUENCIES[1]),
                               atol=0.006, rtol=0)  # fmt: skip


def test_one_hots_are_exact_and_the_other_columns_are_those_of_every_run() -> None:
    z, categories, continuous = draw(prior_of(*FREQUENCIES), 500)
    plain = sample_latents(SPEC, 500, seed=1, step=0)
    assert z.dtype == torch.float32 and z.shape == (500, SPEC.dim) and categories.dtype == torch.int64
    for code, k in enumerate(SPEC.categorical):
        one_hot = torch.nn.functional.one_hot(categories[:, code], k).float()
        assert torch.equal(z[:, SPEC.one_hot_columns(code)], one_hot)
    assert torch.equal(z[:, : SPEC.noise], plain.z[:, : SPEC.noise]) and torch.equal(continuous, plain.continuous)
    assert torch.equal(z[:, SPEC.continuous_columns], continuous)


def test_without_a_prior_latents_are_those_of_sample_latents() -> None:
    for mine, plain in zip(draw(None, 33, step=7), sample_latents(SPEC, 33, seed=1, step=7), strict=True):
        assert torch.equal(mine, plain) and not mine.requires_grad


def test_draws_are_a_function_of_seed_step_stream_and_global_row() -> None:
    prior = prior_of(*FREQUENCIES)
    whole = draw(prior, 64)
    assert torch.equal(whole.z, draw(prior, 64).z)
    assert torch.equal(whole.z[40:], draw(prior, 24, row_offset=40).z)
    on_device = draw_latents(SPEC, 64, prior, seed=torch.tensor(1), step=torch.tensor(0), device=CPU)
    assert torch.equal(whole.z, on_device.z)
    for other in ({"seed": 2}, {"step": 1}, {"step": 2**32}, {"stream": EVALUATION}, {"row_offset": 64}):
        assert not torch.equal(whole.categories, draw(prior, 64, **other).categories)


def test_what_a_prior_draws_has_nothing_to_do_with_the_noise() -> None:
    n = 20_000
    latents = draw(prior_of(*FREQUENCIES), n)
    columns = torch.cat([latents.z[:, : SPEC.noise], latents.continuous, latents.categories.float()], 1).double()
    together = torch.corrcoef(columns.T)
    assert together.fill_diagonal_(0.0).abs().max() < 5 / n**0.5


def test_the_highest_and_lowest_words_draw_the_last_and_the_first_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, wanted in ((0, [0, 0]), (2**32 - 1, [2, 4])):

        def sampled(spec: LatentSpec, rows: int, word: int = word, **_: object) -> Latents:
            z = torch.full((rows, spec.dim), 2.0 * (word >> 8) * 2.0**-24 - 1.0)
            return Latents(z, z.new_zeros((rows, len(spec.categorical))), z.new_zeros((rows, len(spec.continuous))))

        monkeypatch.setattr("fastinfogan.prior.sample_latents", sampled)
        assert draw(prior_of(*FREQUENCIES), 1).categories.tolist() == [wanted]


def test_a_value_that_never_occurs_is_never_drawn_and_has_no_entropy() -> None:
    prior = prior_of((0.0, 0.5, 0.5), (1.0, 0.0, 0.0, 0.0, 0.0))
    categories = draw(prior, 1000).categories
    assert set(categories[:, 0].tolist()) == {1, 2} and not categories[:, 1].any()
    assert prior.entropies().tolist() == pytest.approx([math.log(2), 0.0])


def test_the_prior_goes_a_share_of_the_way_to_the_mean_posterior_of_real_images() -> None:
    prior = prior_of(*FREQUENCIES)
    answers = torch.randn(40, SPEC.head_dim, generator=torch.Generator().manual_seed(0))
    before = [of_code.clone() for of_code in prior.probabilities()]
    prior.follow(answers, rate=0.25)
    for code, was in enumerate(before):
        seen = torch.softmax(answers[:, SPEC.logit_columns(code)], 1).mean(0)
        torch.testing.assert_close(prior.probabilities()[code], 0.75 * was + 0.25 * seen)


def test_a_prior_needs_some_three_hundred_iterations_to_come_two_thirds_of_the_way() -> None:
    spec = LatentSpec(1, (Categorical(2),), learn_prior=True)
    prior, sure = LearnedPrior(spec), torch.tensor([[99.0, 0.0]])
    for _ in range(300):
        prior.follow(sure)
    assert 0.55 < (prior.frequencies[0].item() - 0.5) / 0.5 < 0.7


def test_following_is_expectation_maximisation_of_a_mixtures_weights() -> None:
    """Samples of three overlapping Gaussians, Q their true posterior under the current weights: it finds the truth."""
    generator = torch.Generator().manual_seed(0)
    spec = LatentSpec(1, (Categorical(3),), learn_prior=True)
    prior, truth, means = LearnedPrior(spec), torch.tensor(FREQUENCIES[0]), torch.tensor([-1.5, 0.0, 1.5])
    which = torch.multinomial(truth, 20_000, replacement=True, generator=generator)
    x = means[which] + torch.randn(20_000, generator=generator)
    for _ in range(1500):
        rows = x[torch.randint(0, 20_000, (256,), generator=generator)]
        prior.follow(prior.frequencies.log() - (rows[:, None] - means) ** 2 / 2, rate=0.01)
    torch.testing.assert_close(prior.frequencies, truth, atol=0.03, rtol=0)
    assert prior.frequencies.sum() == pytest.approx(1, abs=1e-4)


def test_entropies_and_the_bound_with_them_are_the_definitions() -> None:
    prior = prior_of(*FREQUENCIES)
    wanted = [-sum(p * math.log(p) for p in of_code) for of_code in FREQUENCIES]
    assert prior.entropies().tolist() == pytest.approx(wanted, rel=1e-5)
    information = torch.tensor([math.log(3), math.log(5) - 0.5, 0.3, -0.1])
    assert prior.corrected(information).tolist() == pytest.approx([wanted[0], wanted[1] - 0.5, 0.3, -0.1], abs=1e-6)


def test_the_invariance_term_leans_towards_a_learnt_prior() -> None:
    one, other = torch.randn(2, 40, SPEC.head_dim, generator=torch.Generator().manual_seed(0))
    prior = prior_of(*FREQUENCIES)
    expected = torch.zeros(())
    for code, wanted in enumerate(FREQUENCIES):
        views = [view[:, SPEC.logit_columns(code)] for view in (one, other)]
        targets = [leaning(view / PRIOR_TEMPERATURE, PRIOR_PULL, torch.tensor(wanted)) for view in views]
        for view, target in zip(views, targets[::-1], strict=True):
            expected = expected + torch.nn.functional.cross_entropy(view, target) / 2
    value, *gradients = of_one_head(SPEC, one, other, 1.0, prior=prior)
    torch.testing.assert_close(value[0], expected)
    assert all(gradient.any() for gradient in gradients)
    assert not torch.allclose(value, of_one_head(SPEC, one, other, 1.0)[0])


def test_the_d_phase_moves_the_prior_by_the_real_images_alone(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(learn_prior=True, invariance=1.0), tmp_path)
    prior = made.generator.prior
    seen: list[torch.Tensor] = []
    made.discriminator.recognition_head.register_forward_hook(lambda *a: seen.append(a[2].detach()))
    made.iteration(0)
    kinds = seen[0].chunk(3)  # real images, generated ones, warped real ones
    expected = 0.1 + RATE * (torch.softmax(kinds[0][:, :10], 1).mean(0) - 0.1)
    torch.testing.assert_close(prior.frequencies, expected, rtol=1e-6, atol=1e-8)


def test_nothing_of_a_prior_is_in_a_run_without_it(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    off, on = (
        make_trainer(tiny_config(learn_prior=learnt, invariance=1.0), tmp_path / str(learnt))
        for learnt in (False, True)
    )
    for made in (off, on):
        made.iteration(0)
    assert set(on.state()) - set(off.state()) == {"generator.prior.frequencies"}
    assert not any("prior" in name for name in off.state()) and not off.draw(3).z.requires_grad
    assert [name for name in on.metrics.names if name not in off.metrics.names] == ["entropy/c1"]
    weights = dict(build(on.config.network_tables, on.spec, seed=3)[0].named_parameters())
    for name, weight in build(off.config.network_tables, off.spec, seed=3)[0].named_parameters():
        assert torch.equal(weight, weights[name])  # the prior takes no random number of theirs
    assert not any(config.learn_prior for config in PRESETS.values())


def test_a_prior_of_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match="no categorical code whose prior could be learnt: add cat:K, or learn no prior"
    ):
        TrainConfig(codes=("uniform:2",), learn_prior=True, invariance=2.0).check()


def test_a_prior_that_has_no_real_images_to_follow_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^--learn-prior follows Q's categories on real images.* add --invariance 2, or"
    ):
        TrainConfig(learn_prior=True).check()
    TrainConfig(learn_prior=True, invariance=2.0).check()


def test_readings_count_the_entropy_of_the_prior(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(codes=("cat:3", "uniform:1"), learn_prior=True), tmp_path)  # nothing moves it
    set_to(made.generator.prior, FREQUENCIES[0])
    made.iteration(0)
    entropy = -sum(p * math.log(p) for p in FREQUENCIES[0])
    values = made._read_metrics()
    assert values["entropy/c1"] == pytest.approx(entropy, abs=1e-5)
    assert values["mi/c1"] == pytest.approx(entropy - values["loss/c1"], abs=1e-5)
    assert values["mi/c2"] == pytest.approx(math.log(2) - values["loss/c2"], abs=1e-5)
    assert f"/{entropy:.2f}" in made._line(values, 1.0)


def test_the_bound_of_an_evaluation_has_the_priors_entropy_as_its_ceiling(tiny_networks: None) -> None:
    config = TrainConfig(noise=4, codes=("cat:3",), learn_prior=True)
    generator, discriminator = build(config.network_tables, config.spec, seed=0)
    set_to(generator.prior, FREQUENCIES[0])
    last = discriminator.recognition_head[-1].linear
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(FREQUENCIES[0]).log())  # knows the prior and nothing of the image
    found = information_bound(generator, discriminator, config.spec, seed=0, fixed_std=False, samples=20_000)
    assert found["c1"] == pytest.approx(0.0, abs=0.02) and found["total"] == found["c1"]


def test_generated_images_and_figures_are_of_the_priors_categories(tiny_networks: None) -> None:
    config = TrainConfig(noise=4, codes=("cat:3",), learn_prior=True)
    generator, _ = build(config.network_tables, config.spec, seed=0)
    set_to(generator.prior, (1e-6, 1e-6, 1 - 2e-6))
    made = generated(generator, config.spec, 50, seed=0, image_range=(0.0, 1.0))
    assert (made.categories == 2).all()
    z = figures.latents(generator, config.spec, 50, seed=0)
    assert (z[:, config.spec.one_hot_columns(0)].argmax(1) == 2).all() and not z.requires_grad


@pytest.fixture
def imbalanced(tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer) -> tuple[Path, tuple[float, ...]]:
    """A saved run whose prior is far from uniform, and its frequencies."""
    wanted = (0.55, *(0.05,) * 9)
    made = make_trainer(tiny_config(learn_prior=True), tmp_path / "run")
    set_to(made.generator.prior, wanted)
    made.save()
    return tmp_path / "run", wanted


def test_evaluate_lists_the_learnt_frequencies(imbalanced: tuple[Path, tuple[float, ...]], command: Command) -> None:
    folder, wanted = imbalanced
    ended = command(evaluate, folder)
    assert ended.code == 0, ended.err
    judged = json.loads((folder / "evaluation.json").read_text())
    entropy = -sum(p * math.log(p) for p in wanted)
    assert judged["frequencies"]["c1"] == pytest.approx(wanted, abs=1e-5)
    assert judged["entropies"] == pytest.approx({"c1": entropy, "c2": math.log(2), "c3": math.log(2)}, abs=1e-5)
    assert "learnt frequencies of the values, %:\n  c1      55.0   5.0" in ended.out
    (found,) = judged["clusterings"].values()
    labels = ("-" if label == UNMATCHED else str(label) for label in found["matching"])
    assert "  label " + "".join(f"{label:>6}" for label in labels) in ended.out


def test_generate_draws_from_the_learnt_prior(
    imbalanced: tuple[Path, tuple[float, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, spec, network, _ = checkpoint.load_networks(imbalanced[0], CPU)
    fed: list[torch.Tensor] = []
    monkeypatch.setattr(figures, "generate", lambda g, z: (fed.append(z), g(z).detach())[1])
    generate.draw(
        generate.Generate(run=imbalanced[0], count=400), network, spec, saved.config.network_tables.image_range
    )
    share = fed[0][:, spec.one_hot_columns(0)].mean(0)[0].item()
    assert share == pytest.approx(0.55, abs=0.1)


def test_a_run_is_not_resumed_with_another_kind_of_prior(
    imbalanced: tuple[Path, tuple[float, ...]], tiny_config: MakeConfig, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    plain: Any = make_trainer(tiny_config(), tmp_path / "plain")
    with pytest.raises(UserError, match=r"generator\.prior\.frequencies .* --learn-prior, .* as they were in the run"):
        plain.restore(checkpoint.load(imbalanced[0]))
