"""The latent layout: every column where DESIGN.md's contract puts it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.codes import Code, parse_code
from fastinfogan.errors import UserError

codes: st.SearchStrategy[Code] = st.one_of(
    st.integers(2, 64).map(Categorical), st.integers(1, 4).map(Uniform), st.integers(1, 4).map(Gaussian)
)
specs = st.builds(LatentSpec, st.integers(1, 64), st.lists(codes, max_size=6).map(tuple), st.sampled_from(["uniform"]))


def test_default_is_the_papers_mnist_layout() -> None:
    spec = LatentSpec()
    assert (spec.dim, spec.head_dim) == (74, 14)
    assert spec.one_hot_columns(0) == slice(62, 72)
    assert spec.continuous_columns == slice(72, 74)
    assert spec.logit_columns(0) == slice(0, 10)
    assert spec.mean_columns == slice(10, 12)
    assert spec.log_std_columns == slice(12, 14)


@pytest.mark.parametrize(
    ("noise", "codes", "dim"),
    [
        (62, (Categorical(10), Uniform(2)), 74),
        (124, (Categorical(10),) * 4 + (Uniform(4),), 168),
        (128, (Categorical(10),) * 10, 228),
        (128, (Uniform(5),), 133),
        (128, (Categorical(20),) * 3 + (Uniform(1),), 189),
    ],
)
def test_dimensions_are_those_of_appendix_c(noise: int, codes: tuple[Code, ...], dim: int) -> None:
    assert LatentSpec(noise, codes).dim == dim


@given(specs)
def test_columns_tile_input_and_head_without_gap_or_overlap(spec: LatentSpec) -> None:
    hot = [range(spec.dim)[spec.one_hot_columns(i)] for i in range(len(spec.categorical))]
    covered = [*range(spec.noise), *(c for r in hot for c in r), *range(spec.dim)[spec.continuous_columns]]
    assert covered == list(range(spec.dim))
    logits = [range(spec.head_dim)[spec.logit_columns(i)] for i in range(len(spec.categorical))]
    head = [c for r in logits for c in r]
    head += [*range(spec.head_dim)[spec.mean_columns], *range(spec.head_dim)[spec.log_std_columns]]
    assert head == list(range(spec.head_dim))


def test_categorical_columns_precede_continuous_ones_whatever_the_order_of_codes() -> None:
    spec = LatentSpec(3, (Uniform(1), Categorical(4), Gaussian(2), Categorical(2)))
    assert spec.categorical == (4, 2)
    assert spec.continuous == ("uniform", "normal", "normal")
    assert spec.one_hot_columns(1) == slice(7, 9)
    assert spec.names == ("c1", "c2", "c3", "c4", "c5")


def test_entropy_of_a_uniform_code_is_ln_2_and_not_a_gaussians() -> None:
    spec = LatentSpec(1, (Categorical(7), Uniform(1), Gaussian(1)))
    assert spec.entropies == pytest.approx((math.log(7), math.log(2), 1.4189385332))


@pytest.mark.parametrize(
    ("text", "code"), [("cat:10", Categorical(10)), ("uniform:2", Uniform(2)), ("gaussian:1", Gaussian(1))]
)
def test_codes_are_read_as_flags_write_them(text: str, code: Code) -> None:
    assert parse_code(text) == code


@pytest.mark.parametrize("text", ["cat", "cat:", "cat:x", "cat:-1", "dog:3", "uniform:1.5"])
def test_an_unreadable_code_is_named_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"cannot read the code .*cat:10") as error:
        parse_code(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(1), "at least 2 values, got 1"),
        (lambda: Uniform(0), "uniform:0 holds no code"),
        (lambda: Gaussian(0), "gaussian:0 holds no code"),
        (lambda: LatentSpec(-1), "0 to 65,536, got -1"),
        (lambda: LatentSpec(noise_prior="cauchy"), "uniform or normal, got 'cauchy'"),  # type: ignore[arg-type]
        (lambda: LatentSpec(0, ()), "needs an input"),
    ],
)
def test_an_impossible_spec_is_refused_with_its_value(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        make()
