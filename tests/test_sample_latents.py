"""The latent sampler's contract: layout, priors, bits, and independence of how rows are split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.errors import UserError
from fastinfogan.ops import sample_latents
from fastinfogan.ops.philox import as_word64, random_words
from tests.strategies import specs

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@given(specs(max_noise=32), st.integers(0, 9), st.sampled_from(DTYPES), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=40)
def test_targets_of_q_are_what_the_generator_sees(spec: LatentSpec, batch: int, dtype: torch.dtype, seed: int) -> None:
    z, categories, continuous = sample_latents(spec, batch, seed=seed, step=3, dtype=dtype)
    assert z.shape == (batch, spec.dim) and z.dtype == dtype
    assert categories.shape == (batch, len(spec.categorical)) and categories.dtype == torch.int64
    assert torch.equal(z[:, spec.continuous_columns].float(), continuous)
    for code, k in enumerate(spec.categorical):
        one_hot = z[:, spec.one_hot_columns(code)]
        assert torch.equal(one_hot, torch.nn.functional.one_hot(categories[:, code], k).to(dtype))


@given(specs(max_codes=3, max_noise=9), st.integers(0, 2**64 - 1), st.integers(0, 2**56 - 1))
@settings(deadline=None, max_examples=30)
def test_draws_are_the_words_that_the_contract_names(spec: LatentSpec, seed: int, step: int) -> None:
    draws = spec.noise + len(spec.names)
    words = random_words(3, draws, seed=as_word64(seed, CPU), step=as_word64(step, CPU), stream=0, row_offset=0).numpy()
    z, categories, continuous = sample_latents(spec, 3, seed=seed, step=step)

    def value(row: int, d: int, prior: str) -> float:
        if prior == "uniform":
            return 2.0 * (int(words[row, d]) >> 8) * 2.0**-24 - 1.0
        pair = d - d % 2
        radius = np.sqrt(-2 * np.log(((int(words[row, pair]) >> 8) + 1) * 2.0**-24))
        angle = 2 * np.pi * (int(words[row, pair + 1]) >> 8) * 2.0**-24
        return float(radius * (np.sin(angle) if d % 2 else np.cos(angle)))

    first = spec.noise + len(spec.categorical)
    for row in range(3):
        for d in range(spec.noise):
            assert z[row, d].item() == pytest.approx(value(row, d, spec.noise_prior), abs=1e-5)
        for code, k in enumerate(spec.categorical):
            assert categories[row, code].item() == (int(words[row, spec.noise + code]) * k) >> 32
        for i, prior in enumerate(spec.continuous):
            assert continuous[row, i].item() == pytest.approx(value(row, first + i, prior), abs=1e-5)


@given(specs(max_codes=3, max_noise=40), st.integers(1, 4), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_ranks_together_draw_what_one_process_would(spec: LatentSpec, ranks: int, rows: int) -> None:
    whole = sample_latents(spec, ranks * rows, seed=7, step=11)
    parts = [sample_latents(spec, rows, seed=7, step=11, row_offset=rank * rows) for rank in range(ranks)]
    for field in range(3):
        assert torch.equal(torch.cat([part[field] for part in parts]), whole[field])


def test_step_is_a_64_bit_number() -> None:
    assert not torch.equal(
        sample_latents(LatentSpec(), 4, seed=1, step=5).z, sample_latents(LatentSpec(), 4, seed=1, step=5 + 2**32).z
    )


def test_seed_and_step_may_be_tensors_on_the_device() -> None:
    ints = sample_latents(LatentSpec(), 4, seed=2**64 - 3, step=9)
    tensors = sample_latents(LatentSpec(), 4, seed=torch.tensor(-3), step=torch.tensor(9))
    assert torch.equal(ints.z, tensors.z)


def test_a_million_draws_follow_the_priors() -> None:
    spec = LatentSpec(3, (Categorical(10), Categorical(3), Uniform(1), Gaussian(1)))
    rows = 250_000
    z, categories, continuous = sample_latents(spec, rows, seed=42, step=0)
    for code, k in enumerate(spec.categorical):
        counts = np.bincount(categories[:, code].numpy(), minlength=k)
        assert stats.chisquare(counts).pvalue > 1e-4
    for column in range(3):
        assert stats.kstest(z[:, column].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
    assert stats.kstest(continuous[:, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
    assert stats.kstest(continuous[:, 1].numpy(), stats.norm.cdf).pvalue > 1e-4
    normal = sample_latents(LatentSpec(4, (), "normal"), rows, seed=42, step=1).z
    assert stats.kstest(normal.flatten().numpy(), stats.norm.cdf).pvalue > 1e-4
    # Columns of one Box-Muller pair, and of different ones, are uncorrelated: five standard errors.
    correlation = np.corrcoef(normal.numpy().T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / rows**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": -1}, "rows 0 to -1"),
        ({"batch": 2, "row_offset": 2**32 - 1}, "outside 0 to 2"),
        ({"batch": 1, "stream": 256}, "stream must be 0 to 255, got 256"),
        ({"batch": 1, "dtype": torch.int32}, r"not torch\.int32"),
        ({"batch": 1, "backend": "cudnn"}, "unknown backend 'cudnn': choose one of reference"),
    ],
)
def test_an_impossible_request_is_refused_with_its_value(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_latents(LatentSpec(), seed=0, step=0, **arguments)


def test_a_backend_that_cannot_run_here_is_refused_with_those_that_can() -> None:
    with pytest.raises(UserError, match=r"the triton backend cannot run this on cpu here: available are .*reference"):
        sample_latents(LatentSpec(), 1, seed=0, step=0, backend="triton")


def test_the_environment_chooses_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINFOGAN_BACKEND", "abacus")
    with pytest.raises(UserError, match="unknown backend 'abacus'"):
        sample_latents(LatentSpec(), 1, seed=0, step=0)
    assert sample_latents(LatentSpec(), 1, seed=0, step=0, backend="reference").z.shape == (1, 74)
