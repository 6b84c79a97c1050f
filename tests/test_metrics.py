"""Each number of an evaluation equals a known answer, and the test labels choose nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import idx_files, write_folder
from torch import nn

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.codes import GAUSSIAN_ENTROPY, UNIFORM_ENTROPY
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.metrics import images as images_module
from fastinfogan.metrics import information, subject
from fastinfogan.metrics.batchnorm import recalibrated
from fastinfogan.metrics.clustering import UNMATCHED, Clustering, clustering, joint, match_to_labels
from fastinfogan.metrics.evaluation import Evaluation, evaluate
from fastinfogan.metrics.images import image_batches
from fastinfogan.metrics.information import information_bound
from fastinfogan.metrics.subject import predict
from fastinfogan.networks import build
from fastinfogan.ops import LOG_STD_MIN

Pair = tuple[torch.Tensor, torch.Tensor]


def labels(n: int, k: int = 10, seed: int = 0) -> torch.Tensor:
    """Every label at least once, the rest at random."""
    rest = torch.randint(0, k, (n - k,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.arange(k), rest])


@settings(deadline=None, max_examples=25)
@given(code=st.permutations(range(10)), seed=st.integers(0, 99))
def test_a_code_that_renames_the_labels_is_perfect(code: list[int], seed: int) -> None:
    train, test = labels(200, seed=seed), labels(100, seed=seed + 1)
    names = torch.tensor(code)
    judged = clustering((names[train], train), (names[test], test), 10)
    assert (judged.error, judged.training_error) == (0, 0)
    assert judged.nmi == pytest.approx(1) and judged.ari == pytest.approx(1)
    assert [judged.matching[value] for value in code] == list(range(10))
    counts = torch.tensor(judged.confusion)
    assert counts.shape == (10, 10) and torch.equal(counts[torch.arange(10), names], test.bincount())


def test_a_code_that_ignores_the_image_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    pairs: list[Pair] = []
    for n in (20_000, 10_000):
        pairs.append((torch.randint(0, 10, (n,), generator=generator), torch.randint(0, 10, (n,), generator=generator)))
    judged = clustering(*pairs, 10)
    assert judged.error == pytest.approx(0.9, abs=0.015)
    assert abs(judged.ari) < 0.002 and judged.nmi < 0.005


def test_two_labels_under_one_value_cost_the_rarer_one() -> None:
    truth = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    merged = torch.tensor([2] * 50 + [2] * 30 + [0] * 20)  # values 1 and 3 are never used
    judged = clustering((merged, truth), (merged, truth), 4)
    assert judged.error == judged.training_error == pytest.approx(0.3)
    assert judged.matching[2] == 0 and judged.matching[0] == 2 and judged.ari < 1 and judged.nmi < 1
    assert judged.confusion == [[0, 0, 50, 0], [0, 0, 30, 0], [20, 0, 0, 0]]


def test_more_values_than_labels_leave_some_without_a_name() -> None:
    truth = labels(1000, 5)
    split = truth * 2 + (torch.arange(1000) % 3 == 0).long()  # each label has two values, two to one
    judged = clustering((split, truth), (split, truth), 10)
    assert judged.error == pytest.approx(334 / 1000)
    assert [judged.matching[value] for value in range(0, 10, 2)] == list(range(5))
    assert [judged.matching[value] for value in range(1, 10, 2)] == [UNMATCHED] * 5


def test_a_value_that_no_training_image_has_names_nothing() -> None:
    """It would be matched to whatever label is left, and be right on the test split by luck."""
    train, test = torch.arange(1000) % 9, torch.arange(100) % 10
    judged = clustering((train, torch.arange(1000) % 9), (test, test), 10)
    assert judged.matching == [*range(9), UNMATCHED] and judged.error == pytest.approx(0.1)
    lazy = clustering((torch.zeros(1000, dtype=torch.int64), torch.arange(1000) % 10), (test * 0, test), 10)
    assert len([label for label in lazy.matching if label != UNMATCHED]) == 1


def test_fewer_values_than_labels_can_name_only_as_many() -> None:
    truth = torch.arange(1000) % 10
    judged = clustering((truth // 5, truth), (truth // 5, truth), 2)
    assert judged.error == pytest.approx(0.8) and len(set(judged.matching) - {UNMATCHED}) == 2
    assert np.array(judged.confusion).shape == (10, 2)


@settings(deadline=None, max_examples=50)
@given(k=st.integers(2, 6), n_labels=st.integers(2, 6), seed=st.integers(0, 999))
def test_the_matching_is_one_to_one_and_none_agrees_more_often(k: int, n_labels: int, seed: int) -> None:
    import itertools

    rng = np.random.default_rng(seed)
    values, truth = (
        rng.integers(0, k, 60),
        np.concatenate([np.arange(n_labels), rng.integers(0, n_labels, 60 - n_labels)]),
    )
    matching = match_to_labels(values, truth, k)
    named = {value: label for value, label in enumerate(matching) if label != UNMATCHED}
    assert len(set(named.values())) == len(named)
    assert all(((values == value) & (truth == label)).any() for value, label in named.items())
    left = set(range(n_labels)) - set(named.values())
    unnamed = [value for value in range(k) if value not in named]
    assert not any(((values == value) & (truth == label)).any() for value in unnamed for label in left)
    padded = [*range(n_labels), *[UNMATCHED] * max(0, k - n_labels)]
    best = max((np.array(one)[values] == truth).sum() for one in itertools.permutations(padded, k))
    assert (matching[values] == truth).sum() == best


def test_several_codes_are_judged_as_one_whose_values_are_their_combinations() -> None:
    """Neither of two binary codes can name four labels; together they do, though not in order."""
    labels_ = torch.arange(400) % 4
    codes = torch.stack([labels_ % 2, 1 - labels_ // 2], 1)
    train, test, k = joint(codes[:300], codes[300:])
    judged = clustering((train, labels_[:300]), (test, labels_[300:]), k)
    assert k == 4 and judged.error == judged.training_error == 0
    alone = clustering((codes[:300, 0], labels_[:300]), (codes[300:, 0], labels_[300:]), 2)
    assert alone.error == 0.5


def test_combinations_beyond_the_labels_are_errors_and_one_of_the_test_split_alone_has_no_name() -> None:
    train, test, k = joint(torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0]]), torch.tensor([[1, 1], [0, 1], [0, 0]]))
    assert (train.tolist(), test.tolist(), k) == ([0, 1, 1, 2], [3, 1, 0], 4)
    judged = clustering((train, torch.tensor([0, 0, 0, 1])), (test, torch.tensor([1, 0, 0])), k)
    assert judged.matching == [UNMATCHED, 0, 1, UNMATCHED]
    assert judged.training_error == 1 / 4 and judged.error == pytest.approx(2 / 3)


def test_a_confusion_matrix_too_large_to_read_is_not_kept() -> None:
    values, truth = torch.arange(1200), torch.arange(1200) % 10
    assert clustering((values, truth), (values, truth), 1200).confusion == []


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(10)))
def test_test_labels_choose_nothing(order: list[int]) -> None:
    train, test = labels(300), labels(200, seed=1)
    honest = clustering((train, train), (test, test), 10)
    renamed = torch.tensor(order)[test]  # a matching fixed on the test split would name the values anew and find 0
    cheated = clustering((train, train), (test, renamed), 10)
    assert cheated.matching == honest.matching == list(range(10))
    assert cheated.training_error == 0 and cheated.error == pytest.approx((renamed != test).float().mean().item())
    assert cheated.nmi == pytest.approx(1) and cheated.ari == pytest.approx(1)  # these need no matching


class Identity(nn.Module):
    """A generator whose image is its latents."""

    prior = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :, None, None]


class Posterior(nn.Module):
    """A Q given as a function of the latents that it sees in the image."""

    def __init__(self, recognise: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.recognise = recognise

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = images.flatten(1)
        return torch.zeros(len(z)), self.recognise(z)


MIXED = LatentSpec(3, (Categorical(4), Uniform(2), Categorical(11), Gaussian(1)))


def exact(spec: LatentSpec, sureness: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The posterior that knows the code; logits ``sureness`` for it and 0 for the rest."""

    def recognise(z: torch.Tensor) -> torch.Tensor:
        logits = [sureness * z[:, spec.one_hot_columns(i)] for i in range(len(spec.categorical))]
        means = z[:, spec.continuous_columns]
        return torch.cat([*logits, means, torch.full_like(means, -100.0)], 1)

    return recognise


def bound(
    spec: LatentSpec, recognise: Callable[[torch.Tensor], torch.Tensor], fixed_std: bool = False, seed: int = 0
) -> dict[str, float]:
    made = (Identity(), Posterior(recognise))
    return information_bound(*made, spec, seed=seed, fixed_std=fixed_std, samples=2000)  # type: ignore[arg-type]


def test_the_bound_reaches_the_entropy_on_an_exact_posterior() -> None:
    found = bound(MIXED, exact(MIXED, 100.0))
    expected = [math.log(4), math.log(11), math.log(2), math.log(2), 0.5 * math.log(2 * math.pi * math.e)]
    assert [found[name] for name in MIXED.names] == pytest.approx(expected, abs=1e-5)
    assert found["total"] == pytest.approx(sum(expected), abs=1e-4)
    assert MIXED.entropies == pytest.approx(expected)


@pytest.mark.parametrize("sureness", [0.0, 0.5, 2.0, 8.0])
def test_the_bound_of_a_category_known_with_some_sureness_is_known(sureness: float) -> None:
    found = bound(LatentSpec(1, (Categorical(7),)), exact(LatentSpec(1, (Categorical(7),)), sureness))
    assert found["c1"] == pytest.approx(math.log(7) + sureness - math.log(math.exp(sureness) + 6), abs=1e-5)


def test_the_bound_with_std_fixed_at_1_is_that_of_a_unit_gaussian() -> None:
    spec = LatentSpec(1, (Uniform(1), Gaussian(1)))
    found = bound(spec, exact(spec, 0.0), fixed_std=True)
    peak = -0.5 * math.log(2 * math.pi)
    assert found["c1"] == pytest.approx(UNIFORM_ENTROPY + peak, abs=1e-5)
    assert found["c2"] == pytest.approx(GAUSSIAN_ENTROPY + peak, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]), fixed_std=st.booleans())
def test_the_bound_never_exceeds_the_entropy(seed: int, scale: float, fixed_std: bool) -> None:
    weight = torch.randn(MIXED.dim, MIXED.head_dim, generator=torch.Generator().manual_seed(seed)) * scale
    found = bound(MIXED, lambda z: z @ weight, fixed_std, seed)
    for name, entropy in zip(MIXED.names, MIXED.entropies, strict=True):
        assert found[name] <= entropy + 1e-6


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    log_std=st.floats(LOG_STD_MIN - 3, 3),
)
def test_a_q_that_ignores_the_image_has_no_information(seed: int, scale: float, log_std: float) -> None:
    said = torch.randn(MIXED.head_dim, generator=torch.Generator().manual_seed(seed)) * scale
    said[MIXED.log_std_columns] = log_std
    found = bound(MIXED, lambda z: said.expand(len(z), -1), seed=seed)
    for name, entropy in zip(MIXED.names, MIXED.entropies, strict=True):
        noise = 20 / 2000 if entropy not in (UNIFORM_ENTROPY, GAUSSIAN_ENTROPY) else 0.1  # of a mean of 2,000 draws
        assert found[name] <= noise


def test_the_bound_is_a_function_of_the_seed_and_leaves_the_networks_alone(tiny_networks: None) -> None:
    config = TrainConfig(noise=4)
    generator, discriminator = build(config.network_tables, config.spec, seed=0)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (generator, discriminator)]
    once, again, other = (
        information_bound(generator, discriminator, config.spec, seed=s, fixed_std=False, samples=600)
        for s in (1, 1, 2)
    )
    assert once == again != other
    assert generator.training and discriminator.training
    for module, state in zip((generator, discriminator), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert once["total"] == pytest.approx(sum(once[name] for name in config.spec.names))


def test_d_has_the_statistics_of_a_quarter_of_the_images_that_it_is_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[torch.Tensor] = []
    asked: list[torch.Tensor] = []
    recognise = exact(MIXED, 1.0)
    monkeypatch.setattr(information, "recalibrated", lambda d, images: (shown.extend(images), d)[1])
    bound(MIXED, lambda z: (asked.append(z), recognise(z))[1])
    assert len(asked) == 4 and len(shown) == 1 and torch.equal(shown[0].flatten(1), asked[0])


def test_the_evaluation_draws_what_training_never_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    for module in (information, images_module):
        draw = module.draw_latents
        monkeypatch.setattr(
            module,
            "draw_latents",
            lambda *a, draw=draw, **k: (drawn.append((k["stream"], k["step"])), draw(*a, **k))[1],
        )
    bound(MIXED, exact(MIXED, 1.0))
    assert drawn == [(3, step) for step in range(4)]  # training's stream is 0; no batch is that of another step
    drawn.clear()
    config = TrainConfig(noise=4)
    generator, _ = build(config.network_tables, config.spec, seed=0)
    images_module.generated(generator, config.spec, 2, seed=0, image_range=(0.0, 1.0))
    assert drawn == [(3, 0)]


def test_recalibration_reproduces_the_statistics_of_the_images(tiny_networks: None) -> None:
    config = TrainConfig(noise=4)
    _, discriminator = build(config.network_tables, config.spec, seed=0)
    discriminator.train()
    for _ in range(3):  # statistics of other images, to be forgotten
        discriminator(torch.randn(8, 1, 28, 28) * 5 + 2)
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    batches = [torch.rand(16, 1, 28, 28) for _ in range(4)]
    judge = recalibrated(discriminator, batches)
    assert not judge.training and not any(module.training for module in judge.modules())
    assert discriminator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in discriminator.state_dict().items())
    assert all(
        torch.equal(one, other) for one, other in zip(judge.parameters(), discriminator.parameters(), strict=True)
    )

    def first_norm(network: nn.Module) -> nn.BatchNorm2d:
        return next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))

    reached: list[torch.Tensor] = []
    first_norm(discriminator).register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0].detach()))
    for images in batches:
        discriminator(images)
    seen = torch.stack([values.transpose(0, 1).flatten(1) for values in reached])
    torch.testing.assert_close(first_norm(judge).running_mean, seen.mean((0, 2)))
    torch.testing.assert_close(first_norm(judge).running_var, seen.var(2).mean(0))  # unbiased, batch by batch
    norms = [module for module in judge.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 3 and all(int(module.num_batches_tracked) == 4 for module in norms)


@pytest.mark.parametrize(
    ("n", "sizes"), [(0, [0]), (1, [1]), (500, [500]), (501, [251, 250]), (1502, [376, 376, 375, 375])]
)
def test_batches_of_an_evaluation_are_even(n: int, sizes: list[int]) -> None:
    pixels = torch.arange(n).to(torch.uint8)[:, None, None, None]
    batches = list(image_batches(pixels, (0.0, 255.0), torch.device("cpu")))
    assert [len(images) for images in batches] == sizes
    assert torch.equal(torch.cat(batches).flatten(), pixels.flatten().float())


def test_the_prediction_is_the_argmax_of_each_code(tiny_networks: None) -> None:
    config = TrainConfig(noise=4, codes=("cat:3", "uniform:1", "cat:5"))
    _, discriminator = build(config.network_tables, config.spec, seed=0)
    discriminator.eval()
    pixels = torch.randint(0, 256, (1203, 28, 28, 1), dtype=torch.uint8)
    found = predict(discriminator, config.spec, pixels, (0.0, 1.0))
    with torch.no_grad():
        _, recognition = discriminator(pixels.permute(0, 3, 1, 2) / 255)
    assert found.shape == (1203, 2)
    assert (found[:, 0] == recognition[:, :3].argmax(1)).float().mean() > 0.999
    assert (found[:, 1] == recognition[:, 3:8].argmax(1)).float().mean() > 0.999


def test_an_evaluation_judges_every_code_with_images_of_the_right_split(
    tmp_path: Path, tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = {name: content for name, content in idx_files(24).items() if name.startswith("t10k")}
    write_folder(tmp_path / "fashion-mnist", idx_files(40) | fewer)
    config = tiny_config(codes=("cat:4", "uniform:1", "cat:12"), data=tmp_path)
    networks = build(config.network_tables, config.spec, seed=0)
    calibrated: list[int] = []
    real = subject.recalibrated
    monkeypatch.setattr(subject, "CALIBRATION_IMAGES", 30)
    monkeypatch.setattr(
        subject, "recalibrated", lambda d, b: real(d, [calibrated.append(len(images)) or images for images in b])
    )
    judged = evaluate(config, *networks, 7)
    assert judged.step == 7 and calibrated == [30]
    assert list(judged.clusterings) == ["c1", "c2", "joint"] and list(judged.entropies) == ["c1", "c2", "c3"]
    assert list(judged.information) == ["c1", "c2", "c3", "total"]
    values = len(judged.clusterings["joint"].matching)
    assert 1 < values <= 48  # only the combinations that occur
    for k, found in zip((4, 12, values), judged.clusterings.values(), strict=True):
        assert len(found.matching) == k and np.array(found.confusion).sum() == 24  # those of the test split
        assert 0 <= found.error <= 1 and 0 <= found.nmi <= 1 and found.ari <= 1


def test_labels_are_not_asked_of_sets_that_have_none_or_of_continuous_codes(
    tiny_networks: None, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject.data, "open_split", lambda *_, **__: pytest.fail("labels were read"))
    for config in (tiny_config(dataset="folder"), tiny_config(codes=("uniform:2",))):
        judged = evaluate(config, *build(config.network_tables, config.spec, seed=0), 1)
        assert judged.clusterings == {} and "argmax" not in judged.table()


def test_the_table_and_the_file_hold_the_figures_and_the_protocol(tmp_path: Path) -> None:
    found = Clustering(0.0312, 0.91, 0.88, 0.0299, [1, 0], [[9, 1], [0, 8]])
    judged = Evaluation(
        42, {"c1": 0.6, "c2": -0.1, "total": 0.5}, {"c1": math.log(2), "c2": math.log(2)}, {"c1": found}
    )
    table = judged.table()
    for part in ("after 42 iterations", "0.600 of 0.693  ( 86.6%)", "-0.100", "total   0.500", "nats"):
        assert part in table
    for part in ("error  3.12%", "NMI 0.910", "ARI 0.880", "on the training split", "test labels chose nothing"):
        assert part in table
    judged.write(tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["information_shares"]["c1"] == pytest.approx(0.6 / math.log(2))
    assert content["information"]["total"] == 0.5 and content["clusterings"]["c1"]["confusion"] == [[9, 1], [0, 8]]
    with pytest.raises(UserError, match="cannot write the evaluation"):
        judged.write(tmp_path / "absent" / "evaluation.json")
