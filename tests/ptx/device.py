"""The launches of a launcher, executed: its output tensors then hold what a GPU would have left there.

A tensor argument becomes an allocation of its storage, of which exactly the tensor's own bytes may be touched: a read
past a row of a strided view is out of bounds even where the storage goes on. A tensor that the launcher left unfilled
must be wholly written at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.ptx.executor import Executor, Result
from tests.ptx.memory import Arena, Clocks, Finding, Int64, Memory, permit_view, unwritten
from tests.ptx.parser import Kernel, parse
from tests.triton_compile import Launch, launches_of

_FORMATS = {"i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u32": "<I", "fp32": "<f"}


@dataclass
class Output:
    """What a launcher returned, and one result and its launch for each kernel that it launched."""

    value: Any
    launches: list[Launch] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        return [finding for result in self.results for finding in result.findings]


class Tensors:
    """The global memory of one launch: tensors that it may touch, and which of them it must fill."""

    def __init__(self) -> None:
        self.arena = Arena()
        self._views: list[tuple[torch.Tensor, int, bool, str]] = []
        self._to_fill: list[tuple[Int64, str]] = []
        self._memory: Memory | None = None

    def pointer(self, tensor: torch.Tensor, filled: bool, name: str) -> int:
        """The device address of ``tensor``; ``filled`` if it holds values before the launch."""
        storage = tensor.untyped_storage()
        address = (
            self.arena.place(storage.data_ptr(), _bytes_of(tensor)) + int(tensor.storage_offset()) * tensor.itemsize
        )
        self._views.append((tensor, address, filled, name))
        return address

    def memory(self, clocks: Clocks, findings: list[Finding]) -> Memory:
        memory = self.arena.memory(clocks, findings)
        for tensor, address, filled, name in self._views:
            places = permit_view(memory, address, tuple(tensor.shape), tensor.stride(), tensor.itemsize, filled)
            if not filled:
                self._to_fill.append((places, name))
        self._memory = memory
        return memory

    def finish(self, kernel: Kernel, findings: list[Finding]) -> None:
        """Copy everything back to the host's tensors; report outputs that were not wholly written."""
        assert self._memory is not None
        for places, name in self._to_fill:
            missing = unwritten(self._memory, places)
            if len(missing):
                address = int(missing[0]) + self._memory.base
                detail = f"{len(missing)} bytes of {name}, from byte {int(np.searchsorted(places, missing[0]))}"
                findings.append(Finding("output left unwritten", kernel.name, 0, 0, address, detail))
        self.arena.copy_back(self._memory)


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (len(storage),)).numpy()  # type: ignore[call-overload]


@lru_cache(maxsize=16)
def _parsed(ptx: str, name: str = "") -> Kernel:
    return parse(ptx, name)


def execute(launch: Launch, ptx: str = "", error: float = 0.0, count: bool = False) -> Result:
    """Run one launch of a Triton kernel on its tensors; ``ptx`` replaces what was compiled (for seeded faults)."""
    kernel = _parsed(ptx or launch.ptx)
    tensors = Tensors()
    values: list[bytes] = []
    for number, (kind, value) in enumerate(launch.arguments):
        if kind.startswith("*"):
            filled = value.untyped_storage().data_ptr() not in launch.outputs
            values.append(struct.pack("<Q", tensors.pointer(value, filled, f"argument {number}")))
        else:
            values.append(struct.pack(_FORMATS[kind], value))
    values += [bytes(8)] * 2  # global scratch and profiler scratch: neither is used
    if len(values) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters, the launch {len(values)} arguments")
    executor = Executor(
        kernel, launch.grid, (32 * launch.warps,), _packed(kernel, values), launch.shared_bytes, tensors.memory, error,
        count,
    )  # fmt: skip
    result = executor.run()
    tensors.finish(kernel, result.findings)
    return result


def execute_cuda(
    ptx: str, name: str, grid: Sequence[int], block: Sequence[int], parameters: Sequence[bytes], tensors: Tensors,
    error: float = 0.0, count: bool = False,
) -> Result:  # fmt: skip
    """Run the entry point whose name contains ``name``; ``parameters`` as the ABI lays them out."""
    kernel = _parsed(ptx, name)
    executor = Executor(kernel, grid, block, _packed(kernel, parameters), 0, tensors.memory, error, count)
    result = executor.run()
    tensors.finish(kernel, result.findings)
    return result


def _packed(kernel: Kernel, values: Sequence[bytes]) -> bytes:
    last = kernel.parameters[-1]
    packed = bytearray(last.offset + last.size)
    for parameter, value in zip(kernel.parameters, values, strict=True):
        if len(value) > parameter.size:
            raise ValueError(f"{parameter.name} has {parameter.size} bytes, not {len(value)}")
        packed[parameter.offset : parameter.offset + len(value)] = value
    return bytes(packed)


def run(
    launcher: Callable[[], Any], capability: int, error: float = 0.0, count: bool = False,
    change: Callable[[str], str] = lambda ptx: ptx,
) -> Output:  # fmt: skip
    """Call ``launcher`` and execute every Triton kernel that it launches, as compiled for ``capability``."""
    values: list[Any] = []
    launches = launches_of(lambda: values.append(launcher()), capability)
    results = [execute(launch, change(launch.ptx), error, count) for launch in launches]
    return Output(values[0], launches, results)
