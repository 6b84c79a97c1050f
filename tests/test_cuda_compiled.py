"""The CUDA sources compiled ahead of time for the three architectures: they compile, and nothing spills."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="cuobjdump comes with triton, which has no wheel here")

from tests.cuda_compile import NVCC, SOURCES, kernels_of


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_cuda_kernels_compile_without_spills_within_64_registers(capability: int) -> None:
    kernels = [kernel for source in SOURCES for kernel in kernels_of(source, capability)]
    assert {kernel.name.split("<")[0] for kernel in kernels} >= {"pack_kernel", "unpack_kernel", "recognize_kernel"}
    for kernel in kernels:
        assert kernel.spilled_bytes == 0, kernel
        # 64 registers: a multiprocessor (65,536) holds its most threads of a block of 256, or half as many on sm_100.
        assert 8 <= kernel.registers <= 64, kernel
