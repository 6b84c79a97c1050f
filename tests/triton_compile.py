"""Compile the Triton kernels for GPUs that are not there, as a launch really specialises them, and read the result.

A launcher runs as it is, on CPU tensors, against a stand-in for the CUDA driver that only names the target. So dtypes,
constants, alignment attributes and options are those of the launch, not a copy of them in a test. Nothing is executed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90, 100)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP_SIZE = 32


@dataclass(frozen=True)
class Launch:
    """One kernel launch as it was compiled: its grid, PTX and cubin, and what they say."""

    kernel: str
    capability: int
    grid: tuple[int, ...]
    ptx: str
    cubin: bytes
    warps: int

    @cached_property
    def _resources(self) -> dict[str, int]:
        text = _tool("cuobjdump", "--dump-resource-usage", cubin=self.cubin)
        return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}

    @property
    def registers(self) -> int:
        """Registers of one thread."""
        return self._resources["REG"]

    @property
    def spilled_bytes(self) -> int:
        """Bytes of stack and local memory of one thread: 0 where nothing is spilled."""
        return self._resources["STACK"] + self._resources["LOCAL"]

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of one program, Triton's dynamic part included where cuobjdump knows it."""
        return self._resources["SHARED"]

    @cached_property
    def sass_instructions(self) -> int:
        """Instructions of the cubin, without the padding after the last one."""
        text = _tool("nvdisasm", cubin=self.cubin)
        opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", text)
        return sum(opcode != "NOP" for opcode in opcodes)

    @cached_property
    def ptx_instructions(self) -> int:
        return len(re.findall(r"^\s+(?:@!?%p\d+\s+)?[a-z][\w.:]*\s[^;]*;", self.ptx, re.MULTILINE))

    def access_bits(self, kind: str) -> dict[int, int]:
        """How many global accesses of each width in bits the PTX holds; ``kind`` is "ld" or "st"."""
        widths: dict[int, int] = {}
        for suffix in re.findall(rf"\b{kind}\.global((?:\.[\w:]+)*)", self.ptx):
            vector = re.search(r"\.v(\d)", suffix)
            bits = int(re.findall(r"\.[bfsu](\d+)", suffix)[-1]) * (int(vector[1]) if vector else 1)
            widths[bits] = widths.get(bits, 0) + 1
        return widths


class _AbsentGPU:
    """What Triton asks of a driver before it launches. One device number per architecture keeps its caches apart."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, _WARP_SIZE)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def _compiling_for(capability: int) -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        launches.append(
            Launch(
                kernel=self.__name__.strip("_"),
                capability=capability,
                grid=tuple(grid),
                ptx=kernel.asm["ptx"],
                cubin=kernel.asm["cubin"],
                warps=kernel.metadata.num_warps,
            )
        )
        return kernel

    active = triton.runtime.driver
    previous = active._active
    active.set_active(_AbsentGPU(capability))
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run
        active._active = previous


def launches_of(launcher: Callable[[], object], capability: int) -> list[Launch]:
    """Call ``launcher`` with nothing executed: every Triton launch that it makes, compiled for ``capability``."""
    with _compiling_for(capability) as launches:
        launcher()
    return launches


def _tool(name: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([_TOOLS / name, *options, file.name], capture_output=True, text=True, check=True).stdout
