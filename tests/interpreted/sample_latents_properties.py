"""The sampler: the contract's bits exactly, normals to 1e-6, over layouts, seeds, steps, streams and rows."""

from __future__ import annotations

import importlib

import pytest
import torch
from fastinfogan.kernels.sample_latents import sample_latents
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.ops.philox import signed64
from tests.interpreted.agreement import DTYPES, examples, rounding, ulp
from tests.strategies import specs

reference = importlib.import_module("fastinfogan.ops.sample_latents")._reference
Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
WORDS = st.sampled_from([0, 1, (1 << 32) - 1, 1 << 32, (1 << 63) + 12345]) | st.integers(0, (1 << 64) - 1)


def call(function: object, spec: LatentSpec, batch: int, *, seed: int = 1, step: int = 0, stream: int = 0,
         row_offset: int = 0, dtype: torch.dtype = torch.float32) -> Results:  # fmt: skip
    return function(  # type: ignore[operator, no-any-return]
        torch.tensor(signed64(seed)),
        torch.tensor(signed64(step)),
        batch,
        spec.noise,
        spec.noise_prior == "normal",
        spec.categorical,
        [prior == "normal" for prior in spec.continuous],
        stream,
        row_offset,
        dtype,
    )


def normal_columns(spec: LatentSpec) -> torch.Tensor:
    noise = [spec.noise_prior == "normal"] * spec.noise
    return torch.tensor(noise + [False] * sum(spec.categorical) + [prior == "normal" for prior in spec.continuous])


@examples(60)
@given(
    spec=specs(),
    batch=st.sampled_from([0, 1, 5, 16, 40, 100]),
    seed=WORDS,
    step=WORDS,
    stream=st.integers(0, 255),
    row_offset=st.sampled_from([0, 1, 16, (1 << 31) - 3, (1 << 32) - 100]),
    dtype=st.sampled_from(DTYPES),
)
def test_agrees_with_the_reference(spec: LatentSpec, batch: int, dtype: torch.dtype, **rest: int) -> None:
    z, categories, continuous = call(sample_latents, spec, batch, dtype=dtype, **rest)
    expected_z, expected_categories, expected_continuous = call(reference, spec, batch, dtype=dtype, **rest)
    assert z.shape == expected_z.shape and z.dtype == expected_z.dtype
    assert torch.equal(categories, expected_categories) and categories.dtype == torch.int64
    allowed = rounding(expected_z)
    normal = normal_columns(spec)
    # Normals agree to 1e-6 before they are rounded to a narrower type, which may then fall either way.
    near = 1e-6 * expected_z.double().abs().clamp(min=1)
    if dtype != torch.float32:
        near = near + ulp(expected_z, dtype)
    allowed = torch.where(normal, allowed + near, allowed)
    difference = (z.double() - expected_z.double()).abs()
    assert bool((difference <= allowed).all()), f"off by {float((difference - allowed).max())}"
    if dtype == torch.float32:
        assert torch.equal(z[:, ~normal], expected_z[:, ~normal])
    assert continuous.dtype == torch.float32 and continuous.shape == expected_continuous.shape
    assert torch.equal(continuous, z[:, spec.continuous_columns].float()), "Q is not asked for what G was fed"


def test_uniforms_of_key_and_counter_zero_are_the_known_answer() -> None:
    z, _, _ = call(sample_latents, LatentSpec(4, ()), 1, seed=0)
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    assert torch.equal(z[0], 2 * ((words >> 8).float() * 2.0**-24) - 1)


@pytest.mark.parametrize("step", [5 + (1 << 32), 5 + (1 << 55)])
def test_steps_beyond_32_bits_draw_other_latents(step: int) -> None:
    assert not torch.equal(
        call(sample_latents, LatentSpec(), 4, step=5)[0], call(sample_latents, LatentSpec(), 4, step=step)[0]
    )


def test_ranks_together_draw_what_one_process_does() -> None:
    spec = LatentSpec(62, (Categorical(10), Uniform(2), Gaussian(1)), "normal")
    whole = call(sample_latents, spec, 100)
    parts = [call(sample_latents, spec, n, row_offset=first) for first, n in ((0, 33), (33, 1), (34, 66))]
    for i, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), expected)


def test_a_hundred_thousand_normals_agree_to_the_far_tail() -> None:
    spec = LatentSpec(128, (Gaussian(4),), "normal")
    z, _, _ = call(sample_latents, spec, 800)
    expected, _, _ = call(reference, spec, 800)
    assert float(expected.abs().max()) > 4.0
    assert bool(((z - expected).abs() <= 1e-6 * expected.abs().clamp(min=1)).all())
