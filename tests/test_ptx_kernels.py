"""Every compiled Triton kernel, executed lane by lane, against its reference and under the sanitizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from fastinfogan.kernels.sample_latents import sample_latents

from fastinfogan import Gaussian, LatentSpec, Uniform
from tests.ptx.cases import architecture_of_the_device, case, check, difference
from tests.ptx.device import run
from tests.strategies import specs
from tests.triton_compile import ARCHITECTURES, KERNELS, PRESETS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCHES = (1, 7, 64, 128, 513)
_CONTIGUOUS = ("sample_latents", "image_batch", "image_batch mirrored")  # ops whose inputs have no strides


def every_case() -> Iterator[Any]:
    """Kernels x presets x dtypes x architectures x batches x strides; without the marker MNIST's bf16 at 128 rows."""
    for kernel in KERNELS:
        for preset, (spec, _) in PRESETS.items():
            if kernel == "unpack_codes" and not spec.categorical:
                continue  # nothing to launch
            for dtype in DTYPES:
                for capability in ARCHITECTURES:
                    for batch in BATCHES:
                        for strided in (False, True) if kernel not in _CONTIGUOUS else (False,):
                            quick = preset == "mnist" and dtype == "bfloat16" and batch == 128 and not strided
                            quick |= (preset, dtype, capability, batch, strided) == ("mnist", "float32", 90, 7, True)
                            quick |= (kernel, preset, dtype, capability, batch, strided) == (
                                "head_loss G", "svhn", "float16", 90, 513, True,
                            )  # fmt: skip
                            marks = () if quick else (pytest.mark.slow,)
                            yield pytest.param(kernel, preset, dtype, capability, batch, strided, marks=marks)


@pytest.mark.parametrize(("kernel", "preset", "dtype", "capability", "batch", "strided"), list(every_case()))
def test_executed_kernel_agrees_with_the_reference_and_nothing_is_reported(
    kernel: str, preset: str, dtype: str, capability: int, batch: int, strided: bool
) -> None:
    check(case(kernel, *PRESETS[preset], DTYPES[dtype], batch, strided), capability)


@pytest.mark.parametrize("error", [-1.0, 1.0])
@pytest.mark.parametrize("kernel", ["head_loss D", "head_loss G"])
def test_approximations_as_bad_as_the_manual_allows_stay_within_the_tolerance(kernel: str, error: float) -> None:
    check(case(kernel, *PRESETS["mnist"], torch.float32, 128), 90, error)


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_normal_priors_agree_on_every_architecture(capability: int) -> None:
    spec = LatentSpec(5, (Gaussian(1), Uniform(1), Gaussian(2)), "normal")
    check(case("sample_latents", spec, (), torch.float32, 65), capability)


def test_many_programs_add_their_sums_in_one_launch() -> None:
    output = check(case("head_loss D", *PRESETS["mnist"], torch.bfloat16, 20_001), 90)
    assert output.launches[0].grid[0] > 2


# Random123's first known answer for philox4x32-10. The others need a first counter word, the number of the call in its
# row, that no row reaches; seeds and steps past 32 bits are compared with the reference above.
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_executed_sampler_knows_philoxs_known_answer(capability: int) -> None:
    words = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    zero = torch.zeros((), dtype=torch.int64)
    output = run(lambda: sample_latents(zero, zero, 1, 4, False, (), (), 0, 0, torch.float32), capability)
    assert not output.findings
    z = output.value[0]
    assert ((z[0].double() + 1) * 2**23).long().tolist() == [word >> 8 for word in words]


@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])  # a compilation takes a second
@given(spec=specs(max_codes=4, max_k=24, max_continuous=4, max_noise=40), batch=st.integers(1, 70))
def test_any_layout_draws_packs_and_scores_as_the_reference(spec: LatentSpec, batch: int) -> None:
    _all_ops(spec, batch)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(spec=specs(max_codes=12, max_k=32, max_continuous=8, max_noise=160), batch=st.integers(1, 200))
def test_any_large_layout_draws_packs_and_scores_as_the_reference(spec: LatentSpec, batch: int) -> None:
    _all_ops(spec, batch)


def _all_ops(spec: LatentSpec, batch: int) -> None:
    for kernel in ("sample_latents", "pack_codes", "head_loss G", "unpack_codes"):
        if spec.categorical or (kernel != "unpack_codes" and (spec.names or kernel != "head_loss G")):
            check(case(kernel, spec, (), torch.bfloat16, batch, strided=kernel != "sample_latents"), 90)


def once_a_device() -> Iterator[Any]:
    """:func:`every_case` without the architecture, which is the device's."""
    for parameters in every_case():
        kernel, preset, dtype, capability, batch, strided = parameters.values
        if capability == ARCHITECTURES[0]:
            yield pytest.param(kernel, preset, dtype, batch, strided, marks=parameters.marks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
@pytest.mark.parametrize(("kernel", "preset", "dtype", "batch", "strided"), list(once_a_device()))
def test_the_device_gives_what_the_executor_gives(
    kernel: str, preset: str, dtype: str, batch: int, strided: bool
) -> None:
    one = case(kernel, *PRESETS[preset], DTYPES[dtype], batch, strided)
    executed, measured = check(one, architecture_of_the_device()).value, one.launcher("cuda")
    measured = tuple(t.cpu() for t in measured) if isinstance(measured, tuple) else measured.cpu()
    assert difference(one, measured, one.reference()) <= 1.0
    assert difference(one, measured, executed) <= 1.0
