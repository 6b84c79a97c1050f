"""Every Triton kernel compiled ahead of time, as a launch specialises it, for GPUs that are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from fastinfogan.kernels.head_loss import head_loss
from fastinfogan.kernels.sample_latents import sample_latents

from fastinfogan import LatentSpec
from tests.strategies import specs
from tests.triton_compile import ARCHITECTURES, KERNELS, PRESETS, Launch, case, launches_of

# The band is 16 to 128: with 128 registers a multiprocessor (65,536) still holds two programs of the largest launch.
LEAST_REGISTERS, MOST_REGISTERS = 16, 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def every_case() -> Iterator[object]:
    """All presets, dtypes and architectures; without the marker each preset in bf16 and MNIST's other variants."""
    for kernel in KERNELS:
        for preset, (spec, _) in PRESETS.items():
            if kernel == "unpack_codes" and not spec.categorical:
                continue  # nothing to launch
            for dtype in DTYPES:
                for capability in ARCHITECTURES:
                    quick = dtype == "bfloat16" and capability == 90
                    if preset == "mnist":
                        quick = (dtype == "bfloat16") or (capability == 90)
                    marks = () if quick else (pytest.mark.slow,)
                    yield pytest.param(kernel, preset, dtype, capability, marks=marks)


def compiled(kernel: str, preset: str, dtype: torch.dtype, batch: int, capability: int) -> Launch:
    launches = launches_of(case(kernel, preset, dtype, batch).launcher, capability)
    assert len(launches) == 1, f"{len(launches)} launches"
    return launches[0]


@pytest.mark.parametrize(("kernel", "preset", "dtype", "capability"), list(every_case()))
def test_one_launch_without_spills_with_stores_as_wide_as_the_layout(
    kernel: str, preset: str, dtype: str, capability: int
) -> None:
    launch = compiled(kernel, preset, DTYPES[dtype], 128, capability)
    assert launch.spilled_bytes == 0
    assert LEAST_REGISTERS <= launch.registers <= MOST_REGISTERS
    expected = case(kernel, preset, DTYPES[dtype], 128)
    assert launch.access_bits("st").get(expected.store_bits), f"stores of {launch.access_bits('st')} bits"
    if kernel.startswith("image_batch"):
        assert launch.access_bits("ld").get(128), "16 bytes of an image at once"


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_batches_of_logits_are_read_and_written_128_bits_at_a_time(dtype: str) -> None:
    launch = compiled("head_loss D", "mnist", DTYPES[dtype], 4096, 90)
    assert launch.access_bits("ld").get(128) and launch.access_bits("st").get(128)
    assert launch.spilled_bytes == 0


@pytest.mark.parametrize("preset", [pytest.param(p, marks=() if p == "celeba" else pytest.mark.slow) for p in PRESETS])
def test_large_batches_combine_their_programs_within_the_one_launch(preset: str) -> None:
    launch = compiled("head_loss G", preset, torch.bfloat16, 65_536, 90)
    assert launch.grid == (256,)
    assert launch.ptx.count("atom.") == 1
    assert launch.spilled_bytes == 0 and launch.registers <= MOST_REGISTERS


def test_batch_sizes_of_one_range_share_one_compilation() -> None:
    """1 and multiples of 16 would specialise an integer argument; sizes, rows and streams must not."""
    for kernel in ("head_loss D", "head_loss G", "sample_latents", "image_batch", "pack_codes"):
        codes = {compiled(kernel, "mnist", torch.bfloat16, batch, 90).ptx for batch in (65, 80, 127, 128)}
        assert len(codes) == 1, kernel


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])  # a compilation takes a second
@given(spec=specs(), batch=st.sampled_from([1, 128, 4096]))
def test_any_layout_compiles_without_spills(spec: LatentSpec, batch: int) -> None:
    normal = [prior == "normal" for prior in spec.continuous]
    seed = torch.zeros((), dtype=torch.int64)
    logits = torch.zeros(batch, dtype=torch.bfloat16)
    recognition = torch.zeros(batch, spec.head_dim, dtype=torch.bfloat16)
    categories = torch.zeros(batch, len(spec.categorical), dtype=torch.int64)
    continuous = torch.zeros(batch, len(normal))

    def both() -> None:
        head_loss(logits, None, recognition, categories, continuous, None, None, spec.categorical, spec.entropies,
                  False, False)  # fmt: skip
        sample_latents(seed, seed, batch, spec.noise, spec.noise_prior == "normal", spec.categorical, normal, 0, 0,
                       torch.bfloat16)  # fmt: skip

    for launch in launches_of(both, 90):
        assert launch.spilled_bytes == 0, launch.kernel
