"""The CUDA kernels of csrc/, executed from nvcc's PTX, against the references and under the sanitizer."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")

from fastinfogan import LatentSpec
from fastinfogan.ops import native
from fastinfogan.ops.pack_codes import _reference as pack_reference
from fastinfogan.ops.pack_codes import _unpack_reference as unpack_reference
from fastinfogan.ops.pack_codes import pack_codes, unpack_codes
from fastinfogan.ops.recognize import _reference as recognize_reference
from fastinfogan.ops.recognize import recognize as recognize_op
from fastinfogan.ops.sample_latents import sample_latents
from fastinfogan.ops.traversal import _reference as traversal_reference
from fastinfogan.ops.traversal import traversal
from tests.cuda_compile import NVCC
from tests.ptx.cases import architecture_of_the_device, on_device
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


@pytest.mark.parametrize("categorical", [(2,), (7, 40, 3), (64, 2, 100), (33,) * 5, (2,) * 40])
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_unpack_and_recognition_find_the_lowest_of_equals_and_any_nan(
    categorical: tuple[int, ...], capability: int
) -> None:
    """Few values, so that most rows have ties; infinities and NaN; codes shorter and longer than a warp."""
    generator = torch.Generator().manual_seed(sum(categorical))
    values = torch.tensor([-torch.inf, -1.0, 0.0, 2.0, torch.inf, torch.nan])
    rows = torch.randint(0, 4, (6, sum(categorical)), generator=generator)
    rows[1], rows[2] = 0, rows[2].where(rows[2] > 0, 4)
    rows[3, ::5] = 5
    q = values[rows]
    for found, result in (unpack(q, 0, categorical, capability), recognize(q, categorical, capability)):
        assert not result.findings, result.findings
        indices = found[0] if isinstance(found, tuple) else found
        assert torch.equal(indices, unpack_reference(q, 0, categorical))
        if isinstance(found, tuple):
            expected = recognize_reference(q, categorical)[1]
            torch.testing.assert_close(found[1], expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and native.on_cuda()), reason="needs a CUDA device and the extension built by nvcc"
)
@pytest.mark.parametrize("batch", [1, 7, 64, 128, 513])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_device_gives_what_the_executor_gives(preset: str, dtype: str, batch: int) -> None:
    the_device_gives_what_the_executor_gives(preset, dtype, batch, architecture_of_the_device(), "cuda")


def the_device_gives_what_the_executor_gives(preset: str, dtype: str, batch: int, capability: int, device: str) -> None:
    spec, kind = PRESETS[preset][0], DTYPES[dtype]
    fixed = (wide(batch, spec.noise, kind), *drawn(spec, batch))
    there = [on_device(tensor, device) for tensor in fixed]
    z, _ = pack(*fixed, spec.categorical, kind, capability)
    assert torch.equal(pack_codes(spec, *there, kind, backend="native").cpu(), z)
    for code in {0, len(spec.names) - 1}:
        values = torch.arange(2).float()
        swept, _ = pack(*fixed, spec.categorical, kind, capability, values, code)
        given = values.long() if code < len(spec.categorical) else values
        found = traversal(spec, *there, code=code, values=given.to(device), dtype=kind, backend="native")
        assert torch.equal(found.cpu(), swept)
    if spec.categorical:
        table = wide(batch, spec.dim, kind)
        categories, _ = unpack(table, spec.noise, spec.categorical, capability)
        assert torch.equal(unpack_codes(spec, on_device(table, device), backend="native")[1].cpu(), categories)
    q = wide(batch, spec.head_dim, kind)
    executed, _ = recognize(q, spec.categorical, capability)
    measured = recognize_op(spec, on_device(q, device), backend="native")
    assert torch.equal(measured[0].cpu(), executed[0])
    for mine, theirs in zip(measured[1:], executed[1:], strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-6, atol=0)
