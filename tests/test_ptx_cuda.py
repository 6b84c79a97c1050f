"""The CUDA kernels of csrc/, executed from nvcc's PTX, against the references and under the sanitizer."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")

from fastinfogan import LatentSpec
from fastinfogan.ops.pack_codes import _reference as pack_reference
from fastinfogan.ops.pack_codes import _unpack_reference as unpack_reference
from fastinfogan.ops.recognize import _reference as recognize_reference
from fastinfogan.ops.sample_latents import sample_latents
from fastinfogan.ops.traversal import _reference as traversal_reference
from tests.cuda_compile import NVCC
from tests.ptx.cuda import pack, recognize, unpack
from tests.triton_compile import ARCHITECTURES, PRESETS

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES = [
    pytest.param(
        preset, dtype, capability, batch,
        marks=() if (preset in ("mnist", "chairs") and capability == 90 and batch == 7) else (pytest.mark.slow,),
    )
    for preset in PRESETS for dtype in DTYPES for capability in ARCHITECTURES for batch in (1, 7, 64, 128, 513)
]  # fmt: skip


def wide(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows inside a wider table, whose other columns may not be read."""
    return torch.randn(rows, columns + 3, generator=torch.Generator().manual_seed(rows)).to(dtype)[:, 2:-1]


def drawn(spec: LatentSpec, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    latents = sample_latents(spec, batch, seed=1, step=0, backend="reference")
    return latents.categories, latents.continuous


@pytest.mark.parametrize(("preset", "dtype", "capability", "batch"), CASES)
def test_executed_pack_is_the_reference(preset: str, dtype: str, capability: int, batch: int) -> None:
    spec, kind = PRESETS[preset][0], DTYPES[dtype]
    categories, continuous = drawn(spec, batch)
    arguments = (wide(batch, spec.noise, kind), categories, continuous, spec.categorical, kind)
    z, result = pack(*arguments, capability)
    assert not result.findings, result.findings
    assert torch.equal(z, pack_reference(*arguments))


@pytest.mark.parametrize(("preset", "dtype", "capability", "batch"), CASES)
def test_executed_traversals_are_the_reference(preset: str, dtype: str, capability: int, batch: int) -> None:
    spec, kind = PRESETS[preset][0], DTYPES[dtype]
    rows = min(batch, 9)
    categories, continuous = drawn(spec, rows)
    fixed = (wide(rows, spec.noise, kind), categories, continuous)
    for code in {0, len(spec.names) - 1}:
        values = torch.arange(3).float()
        z, result = pack(*fixed, spec.categorical, kind, capability, values, code)
        assert not result.findings, result.findings
        assert torch.equal(z, traversal_reference(*fixed, code, values, spec.categorical, kind))


@pytest.mark.parametrize(("preset", "dtype", "capability", "batch"), CASES)
def test_executed_unpack_and_recognition_are_the_reference(
    preset: str, dtype: str, capability: int, batch: int
) -> None:
    spec, kind = PRESETS[preset][0], DTYPES[dtype]
    if spec.categorical:
        z = wide(batch, spec.dim, kind)
        categories, result = unpack(z, spec.noise, spec.categorical, capability)
        assert not result.findings, result.findings
        assert torch.equal(categories, unpack_reference(z, spec.noise, spec.categorical))
    q = wide(batch, spec.head_dim, kind)
    found, result = recognize(q, spec.categorical, capability)
    assert not result.findings, result.findings
    expected = recognize_reference(q, spec.categorical)
    assert torch.equal(found[0], expected[0])
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


def test_few_blocks_stride_over_all_rows() -> None:
    spec = PRESETS["mnist"][0]
    categories, continuous = drawn(spec, 30)
    arguments = (wide(30, spec.noise, torch.float32), categories, continuous, spec.categorical, torch.float32)
    z, result = pack(*arguments, 90, max_blocks=2)
    assert not result.findings, result.findings
    assert torch.equal(z, pack_reference(*arguments))


def test_zeros_that_may_land_after_the_ones_are_reported() -> None:
    """Without the warp's barrier between them, one lane's zero and another's one are not ordered."""
    spec = PRESETS["mnist"][0]
    categories, continuous = drawn(spec, 7)
    arguments = (wide(7, spec.noise, torch.float32), categories, continuous, spec.categorical, torch.float32)
    _, result = pack(*arguments, 90, change=lambda ptx: re.sub(r"bar\.warp\.sync\s+-1;", "", ptx))
    assert {found.kind for found in result.findings} == {"global race"}
