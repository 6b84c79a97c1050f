"""The CUDA kernels of ``csrc/pack_codes.cu``, executed from nvcc's PTX with arguments laid out as the ABI has them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import torch

from tests.cuda_compile import SOURCES, ptx_of
from tests.ptx.device import Tensors, execute_cuda
from tests.ptx.executor import Result

WARPS_PER_BLOCK = 4
_MOST_BLOCKS = 1 << 16
_MOST_CODES = 256
# Storage type -> its number in csrc's Dtype, and its name in a mangled template argument.
_DTYPES = {
    torch.float32: (0, "f"),
    torch.bfloat16: (1, "NS_8baseline8Bfloat16"),
    torch.float16: (2, "NS_8baseline4Half"),
}

Change = Callable[[str], str]


def _same(ptx: str) -> str:
    return ptx


def _columns(categorical: Sequence[int]) -> bytes:
    """struct Columns: the number of codes, then the first column of each and one past the last."""
    first = [sum(categorical[:i]) for i in range(len(categorical) + 1)]
    return struct.pack(f"<{_MOST_CODES + 2}i", len(categorical), *first, *[0] * (_MOST_CODES + 1 - len(first)))


def symbol_of(kernel: str, dtype: torch.dtype) -> str:
    """What only the mangled name of ``kernel<dtype>`` contains: the length tells pack_kernel from unpack_kernel."""
    return f"{len(kernel)}{kernel}I{_DTYPES[dtype][1]}"


def blocks_for(rows: int, most: int = _MOST_BLOCKS) -> int:
    """One warp a row, until warps stride over the rows."""
    return min(most, -(-rows // WARPS_PER_BLOCK))


def _run(
    kernel: str, dtype: torch.dtype, rows: int, parameters: list[bytes], tensors: Tensors, capability: int,
    change: Change = _same, max_blocks: int = _MOST_BLOCKS, count: bool = False,
) -> Result:  # fmt: skip
    (source,) = (source for source in SOURCES if source.name == "pack_codes.cu")
    ptx, grid = change(ptx_of(source, capability)), (blocks_for(rows, max_blocks),)
    return execute_cuda(ptx, symbol_of(kernel, dtype), grid, (32, WARPS_PER_BLOCK), parameters, tensors, count=count)


def pack(
    noise: torch.Tensor, categories: torch.Tensor, continuous: torch.Tensor, categorical: Sequence[int],
    dtype: torch.dtype, capability: int, values: torch.Tensor | None = None, code: int = -1, change: Change = _same,
    max_blocks: int = _MOST_BLOCKS, count: bool = False,
) -> tuple[torch.Tensor, Result]:  # fmt: skip
    """pack_codes, or with ``values`` and ``code`` the traversal of that code."""
    n_values = 1 if values is None else len(values)
    rows = len(noise) * n_values
    z = torch.empty(rows, noise.shape[1] + sum(categorical) + continuous.shape[1], dtype=dtype)
    tensors = Tensors()
    arguments = struct.pack(
        "<QQIIqqqqQQqqq",
        tensors.pointer(noise, True, "noise"), tensors.pointer(continuous, True, "continuous"),
        _DTYPES[noise.dtype][0], _DTYPES[continuous.dtype][0], noise.stride(0), continuous.stride(0),
        noise.shape[1], continuous.shape[1], tensors.pointer(categories, True, "categories"),
        0 if values is None else tensors.pointer(values, True, "values"), rows, n_values, code,
    )  # fmt: skip
    parameters = [arguments, _columns(categorical), struct.pack("<Q", tensors.pointer(z, False, "z"))]
    return z, _run("pack_kernel", dtype, rows, parameters, tensors, capability, change, max_blocks, count)


def unpack(
    z: torch.Tensor, noise: int, categorical: Sequence[int], capability: int, count: bool = False
) -> tuple[torch.Tensor, Result]:
    """unpack_codes."""
    categories = torch.empty(len(z), len(categorical), dtype=torch.int64)
    tensors = Tensors()
    parameters = [
        struct.pack("<Q", tensors.pointer(z, True, "z")),
        *(struct.pack("<q", number) for number in (z.stride(0), noise, len(z))),
        _columns(categorical),
        struct.pack("<Q", tensors.pointer(categories, False, "categories")),
    ]
    return categories, _run("unpack_kernel", z.dtype, len(z), parameters, tensors, capability, count=count)


def recognize(
    recognition: torch.Tensor, categorical: Sequence[int], capability: int, count: bool = False
) -> tuple[tuple[torch.Tensor, ...], Result]:
    """recognize: categories, confidence, mean and std."""
    rows, n_codes = len(recognition), len(categorical)
    n_continuous = (recognition.shape[1] - sum(categorical)) // 2
    found = (
        torch.empty(rows, n_codes, dtype=torch.int64),
        torch.empty(rows, n_codes),
        torch.empty(rows, n_continuous),
        torch.empty(rows, n_continuous),
    )
    tensors = Tensors()
    parameters = [
        struct.pack("<Q", tensors.pointer(recognition, True, "recognition")),
        *(struct.pack("<q", number) for number in (recognition.stride(0), rows, n_continuous)),
        _columns(categorical),
        *(struct.pack("<Q", tensors.pointer(tensor, False, f"output {i}")) for i, tensor in enumerate(found)),
    ]
    return found, _run("recognize_kernel", recognition.dtype, rows, parameters, tensors, capability, count=count)
