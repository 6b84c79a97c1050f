"""The linear probe finds what is linearly there, sees only the labels that it was given, and ignores the test's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.codes import Code
from fastinfogan.metrics.probe import Probe, balanced, probe, representations
from fastinfogan.networks import TABLES, build

CLASSES = 4


def split(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Three tables of the same images: the class itself, the class under noise in one of 30 columns, noise alone."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    exact = np.eye(CLASSES)[labels]
    faint = rng.normal(size=(n, 30))
    faint[:, 7] += 3.0 * labels
    return {"exact": exact, "faint": faint, "noise": rng.normal(size=(n, 5))}, labels


def judged(labels: tuple[int, ...] = (4, 40, 400), draws: int = 3, flip_test: bool = False) -> Probe:
    (train, train_labels), (test, test_labels) = split(2000, 0), split(1000, 1)
    if flip_test:
        test_labels = (test_labels + 1) % CLASSES
    tables = {name: (train[name], test[name]) for name in train}
    return probe(tables, train_labels, test_labels, seed=0, labels=labels, draws=draws)


@pytest.fixture(scope="module")
def found() -> Probe:
    return judged()


def test_a_representation_that_is_the_label_needs_one_label_per_class(found: Probe) -> None:
    assert [error for errors in found.errors["exact"].values() for error in errors] == [0.0] * 9


def test_a_representation_without_the_label_stays_at_chance(found: Probe) -> None:
    assert all(0.65 < error < 0.85 for errors in found.errors["noise"].values() for error in errors)


def test_more_labels_find_a_faint_direction(found: Probe) -> None:
    """Classes 3 standard deviations apart on one line: no classifier errs less than 3/4 * 2 * Phi(-1.5) = 10 %."""
    few, some, many = (np.mean(errors) for errors in found.errors["faint"].values())
    assert few > some + 0.05 and some > many + 0.05
    assert 0.1 - 3 * 0.01 < many < 0.2  # three standard errors of 1,000 test images


def test_the_test_labels_choose_nothing(found: Probe) -> None:
    """With every test label renamed, what was right is wrong: the probe named as before."""
    renamed = judged(labels=(40,), flip_test=True)
    assert renamed.errors["exact"][40] == [1.0] * 3


def test_the_draws_differ_and_are_a_function_of_the_seed(found: Probe) -> None:
    again = judged(labels=(40,))
    assert again.errors["faint"][40] == found.errors["faint"][40]
    assert len(set(found.errors["faint"][40])) > 1


def test_labels_are_drawn_equally_from_every_class() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    rng = np.random.default_rng(0)
    assert np.bincount(labels[balanced(labels, 3, rng)]).tolist() == [1, 1, 1]
    chosen = balanced(labels, 15, rng)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 2] and len(set(chosen)) == 12
    assert np.bincount(labels[balanced(labels, 1, rng)]).tolist() == [1, 1, 1]  # never none


def test_every_representation_is_centred_and_scaled_by_the_training_images_alone(tiny_networks: None) -> None:
    spec = LatentSpec(4, (Categorical(3), Uniform(2)))
    _, discriminator = build(TABLES["mnist"], spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randint(0, 256, (n, 28, 28, 1), generator=generator).byte() for n in (80, 30))
    found = representations(discriminator.eval(), spec, train, test, (0.0, 1.0))
    alone = representations(discriminator, spec, train, test[:1], (0.0, 1.0))
    assert {name: one.shape for name, (_, one) in found.items()} == {
        "Q's trunk": (30, 16), "Q's codes": (30, 5), "pixels": (30, 784), "PCA": (30, 50),
    }  # fmt: skip
    for name, (of_train, of_test) in found.items():
        np.testing.assert_allclose(of_train.mean(0), 0, atol=1e-9)
        assert np.square(of_train).sum(1).mean() == pytest.approx(1)
        np.testing.assert_allclose(of_test[:1], alone[name][1], atol=1e-4)


def test_the_table_shows_mean_and_spread_and_how_the_probe_was_fitted() -> None:
    found = Probe({"pixels": {10: [0.5, 0.4], 100: [0.2, 0.2]}}, {"pixels": 784}, 1000, 20_000)
    text = "\n".join(found.lines())
    assert "45.00% ± 7.07%" in text and "20.00% ± 0.00%" in text and "pixels (784)" in text
    assert "2 draws" in text and "cross-validation on the labelled" in text and "1,000 test images" in text


@pytest.mark.parametrize("codes", [(Uniform(2),), (Categorical(4),), (Categorical(3),)])
def test_codes_that_are_the_same_of_every_image_tell_nothing(tiny_networks: None, codes: tuple[Code, ...]) -> None:
    spec = LatentSpec(4, codes)
    _, discriminator = build(TABLES["mnist"], spec, seed=0)
    with torch.no_grad():
        for weight in discriminator.recognition_head.parameters():
            weight.zero_()
    pixels = torch.randint(0, 256, (30, 28, 28, 1), dtype=torch.uint8)
    made = representations(discriminator.eval(), spec, pixels, pixels, (0.0, 1.0))
    assert all(np.abs(part).max() < 1e-9 for part in made["Q's codes"])
    labels = np.arange(30) % 3
    made = {"Q's codes": made["Q's codes"]}
    assert probe(made, labels, labels, seed=0, labels=(9,), draws=1).errors["Q's codes"][9] == [pytest.approx(2 / 3)]
