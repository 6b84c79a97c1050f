"""Runs one kernel: every lane of every block at once, a register being one numpy array with an element per lane.

Lanes step in SIMT order. A lane has a program counter; the lanes that stand at the smallest one go next, together, up
to the end of their basic block, which is where diverged lanes meet again. A barrier or a warp-wide instruction waits
until all lanes that it names stand at it; if nobody else can move, that is reported. All blocks run in one go, so the
last of them to arrive at an atomic is the one with the highest number; the sanitizer, not the schedule, finds races.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.collectives import COLLECTIVE, collective
from tests.ptx.counters import Counters, class_of
from tests.ptx.instructions import DTYPES, Semantics, UnknownInstruction, semantics
from tests.ptx.memory import GLOBAL_BASE, LOCAL_BASE, SHARED_BASE, WARP, Clocks, Finding, Generic, Int64, Memory
from tests.ptx.parser import Address, Immediate, Instruction, Kernel, Register, Symbol, Vector

_PARAM_BASE = 1 << 20
_SPACES = ("param", "global", "shared", "local")
_CACHING = {"cg", "ca", "cs", "cv", "lu", "wb", "wt", "nc"}
_WIDTHS = {"pred": bool, "b16": np.uint16, "b32": np.uint32, "f32": np.uint32, "b64": np.uint64, "f64": np.uint64}
_STOP_AFTER = 1 << 20  # blocks of instructions: a kernel that runs longer has lost its loop's end

Lanes = NDArray[np.bool_]
Step = Callable[[], None]


class Stuck(Exception):
    """Lanes wait for others that never come; the finding says where."""


@dataclass
class Result:
    """findings: the sanitizer's, in order; counters: what the execution cost."""

    findings: list[Finding]
    counters: Counters = field(default_factory=Counters)


class _Registers(dict[str, NDArray[Any]]):
    def __init__(self, kernel: Kernel, garbage: Int64) -> None:
        self._types, self._garbage = kernel.registers, garbage

    def __missing__(self, name: str) -> NDArray[Any]:
        self[name] = self._garbage.astype(_WIDTHS[self._types[name]])
        return self[name]


class Executor:
    """``kernel`` on ``grid`` blocks of ``block`` threads, with the bytes of its parameters and global memory.

    error: -1 to 1, where approximations lie within what the manual allows them.
    count: also count sectors and bank conflicts, which takes a sort per access.
    """

    def __init__(
        self, kernel: Kernel, grid: Sequence[int], block: Sequence[int], parameters: bytes, shared_bytes: int,
        make_global: Callable[[Clocks, list[Finding]], Memory], error: float = 0.0, count: bool = False,
    ) -> None:  # fmt: skip
        self.kernel, self.count, self.error = kernel, count, error
        self.grid, self.block = ((*shape, 1, 1)[:3] for shape in (grid, block))
        self.threads, self.blocks = int(np.prod(self.block)), int(np.prod(self.grid))
        if self.threads % WARP:
            raise UnknownInstruction(f"a block of {self.threads} threads, not whole warps")
        self.lanes = self.threads * self.blocks
        self.clocks = Clocks(self.threads, self.blocks)
        self.result = Result([])
        lane = np.arange(self.lanes)
        self.shared = self._own_memory("shared", SHARED_BASE, shared_bytes, lane // self.threads)
        self.memory = make_global(self.clocks, self.result.findings)
        local = self._own_memory("local", LOCAL_BASE, kernel.stack_bytes, lane)
        self.spaces: dict[str, Memory | Generic] = {
            "global": self.memory, "shared": self.shared, "local": local, "generic": Generic(local, self.memory)
        }  # fmt: skip
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.offsets = {parameter.name: parameter.offset for parameter in kernel.parameters}
        # What a register holds before it is written differs from lane to lane, so that a result that depends on it is
        # wrong (LLVM leaves such registers in the unused halves of packed values).
        self.registers: dict[str, NDArray[Any]] = _Registers(kernel, np.arange(self.lanes) * 0x9E3779B9 + 0xA5A5A5)
        self.special = self._special()
        self.mask: Lanes = np.ones(self.lanes, bool)
        self.full = True
        self.pc = np.zeros(self.lanes, np.int64)
        self.steps = [self._compile(instruction) for instruction in kernel.instructions]
        self.starts = self._block_starts()

    def _own_memory(self, name: str, base: int, size: int, owner: Int64) -> Memory:
        """``size`` bytes for each owner of lanes, all of which may be touched and none of which are written."""
        stride = -(-size // 16) * 16
        memory = Memory(name, base, size, self.clocks, owner * stride, self.result.findings)
        for first in range(0, (int(owner.max()) + 1) * stride, max(stride, 1)):
            memory.state[first : first + size] = 1
        return memory

    def _special(self) -> dict[str, NDArray[Any]]:
        thread, block = np.arange(self.lanes) % self.threads, np.arange(self.lanes) // self.threads
        found = {"%laneid": thread % WARP}
        for name, index, extents in (("tid", thread, self.block), ("ctaid", block, self.grid)):
            for axis, extent in zip("xyz", extents, strict=True):
                found[f"%{name}.{axis}"] = index % extent
                found[f"%n{name}.{axis}"] = np.full(self.lanes, extent)
                index = index // extent
        return {name: value.astype(np.uint32) for name, value in found.items()}

    def _block_starts(self) -> list[int]:
        """Instructions before which lanes can meet: labels, what follows a branch, and collective instructions."""
        starts = {0, *self.kernel.labels.values()}
        for i, instruction in enumerate(self.kernel.instructions):
            root = instruction.opcode.split(".")[0]
            if root in ("bra", "ret", "exit"):
                starts.add(i + 1)
            if root in COLLECTIVE:
                starts.update((i, i + 1))
        return sorted(starts | {len(self.kernel.instructions)})

    # Operands

    def reader(self, operand: object, kind: str) -> Callable[[], NDArray[Any]]:
        """A function that gives the operand's value on all lanes, or on one for a constant, as type ``kind``."""
        dtype = DTYPES[kind]
        if isinstance(operand, Immediate):
            bits = operand.value % (1 << dtype.itemsize * 8)
            constant = np.array([bits], f"u{dtype.itemsize}").view(dtype) if kind != "pred" else np.array([bits != 0])
            return lambda: constant
        if isinstance(operand, Symbol):
            address = np.array([self._symbol(operand.name)], np.uint64).astype(dtype)
            return lambda: address
        if isinstance(operand, Vector):
            width = dtype.itemsize // len(operand.parts)
            parts = [self.reader(part, f"b{8 * width}") for part in operand.parts]
            wide = np.dtype(f"u{dtype.itemsize}")

            def joined() -> NDArray[Any]:
                value = np.zeros(self.lanes, wide)
                for i, part in enumerate(parts):
                    value |= part().astype(wide) << wide.type(8 * width * i)
                return value.view(dtype)

            return joined
        assert isinstance(operand, Register)
        name = operand.name
        if name in self.special:
            value = self.special[name].astype(dtype)
            return lambda: value
        if name not in self.kernel.registers:
            raise UnknownInstruction(f"register {name}")
        width = np.dtype(_WIDTHS[self.kernel.registers[name]]).itemsize
        registers = self.registers
        if width == dtype.itemsize:
            return lambda: registers[name].view(dtype)
        if width < dtype.itemsize:
            raise UnknownInstruction(f"{name} read as {kind}")
        return lambda: registers[name].astype(f"u{dtype.itemsize}").view(dtype)

    def _symbol(self, name: str) -> int:
        if name in self.offsets:
            return _PARAM_BASE + self.offsets[name]
        if name == "global_smem":
            return SHARED_BASE
        if name == self.kernel.stack:
            return LOCAL_BASE
        raise UnknownInstruction(f"symbol {name}")

    def writer(self, operand: object, kind: str) -> Callable[[NDArray[Any]], None]:
        """A function that puts a value of type ``kind`` into the operand, on the active lanes."""
        if isinstance(operand, Vector):
            bits = DTYPES[kind].itemsize * 8 // len(operand.parts)
            narrow = np.dtype(f"u{bits // 8}")
            writers = [self.writer(part, f"b{bits}") for part in operand.parts]

            def split(value: NDArray[Any]) -> None:
                whole = np.ascontiguousarray(np.broadcast_to(value, (self.lanes,)))
                pieces = whole.view(narrow).reshape(self.lanes, -1)
                for i, write in enumerate(writers):
                    write(np.ascontiguousarray(pieces[:, i]))

            return split
        if operand == Symbol("_"):  # a part of a vector that nobody wants
            return lambda value: None
        assert isinstance(operand, Register)
        name = operand.name
        target = np.dtype(_WIDTHS[self.kernel.registers[name]])
        registers = self.registers

        def write(value: NDArray[Any]) -> None:
            if value.dtype != target:
                same = value.dtype.itemsize == target.itemsize
                value = value.view(target) if same and target.kind != "b" else value.astype(target)
            if self.full and len(value) == self.lanes:
                registers[name] = value
                return
            # A register that is shared with another name (mov) is not written in place.
            registers[name] = np.where(self.mask, value, registers[name])

        return write

    # Instructions

    def _compile(self, instruction: Instruction) -> Step:
        try:
            return self._compiled(instruction)
        except (UnknownInstruction, AssertionError, KeyError) as error:
            raise UnknownInstruction(f"{instruction}: not implemented ({error})") from None

    def _compiled(self, instruction: Instruction) -> Step:
        root, *mods = instruction.opcode.split(".")
        if root in ("bra", "ret", "exit"):
            if root == "bra":
                self.kernel.labels[instruction.operands[0].name]  # type: ignore[union-attr]
            return lambda: None
        if root in ("ld", "st"):
            return self._access(instruction, root, mods)
        if root == "atom":
            return self._atomic(instruction, mods)
        if root in COLLECTIVE:
            return collective(self, instruction, mods)
        meaning: Semantics = semantics(instruction.opcode, self.error)
        target, *sources = instruction.operands
        if len(sources) != len(meaning.sources):
            raise UnknownInstruction(f"{len(sources)} source operands")
        reads = [self.reader(source, kind) for source, kind in zip(sources, meaning.sources, strict=True)]
        write, function = self.writer(target, meaning.result), meaning.function
        return lambda: write(function(*(read() for read in reads)))

    def _access(self, instruction: Instruction, root: str, mods: list[str]) -> Step:
        space, kind = mods[0] if mods[0] in _SPACES else "generic", mods[-1]
        mods = [mod for mod in mods[:-1] if mod != space]
        vector = [mod for mod in mods if mod in ("v2", "v4", "v8")]
        if set(mods) - set(vector) - _CACHING:
            raise UnknownInstruction(instruction.opcode)
        place, value = instruction.operands if root == "st" else reversed(instruction.operands)
        assert isinstance(place, Address)
        parts = value.parts if isinstance(value, Vector) else (value,)
        if len(parts) != int(vector[0][1:] if vector else 1):
            raise UnknownInstruction("vector length")
        wide = "u32" if space == "shared" else "u64"
        base, dtype = self.reader(place.base, wide), DTYPES[kind]
        size, memory = dtype.itemsize, self.spaces.get(space, self.memory)

        def where() -> tuple[Int64, Int64]:
            lane = np.flatnonzero(self.mask)
            at = base().astype(np.int64)
            address = (at[lane] if len(at) > 1 else np.broadcast_to(at, lane.shape)) + place.offset
            if space != "param":
                self.count_access(instruction, space, lane, address, size * len(parts))
                bad = address % (size * len(parts)) != 0
                memory.report("misaligned access", instruction, lane, address, bad, f"{size * len(parts)} bytes")
                lane, address = lane[~bad], address[~bad]
            return lane, address

        if root == "ld":
            writes = [self.writer(part, kind) for part in parts]

            def load() -> None:
                lane, address = where()
                for i, write in enumerate(writes):
                    if space == "param":
                        found = self._parameter(address + i * size, size)
                    else:
                        found = memory.load(instruction, lane, address + i * size, size)
                    value = np.zeros(self.lanes, f"u{size}")
                    value[lane] = found
                    write(value.view(dtype))

            return load
        reads = [self.reader(part, kind) for part in parts]

        def store() -> None:
            lane, address = where()
            for i, read in enumerate(reads):
                value = read().view(f"u{size}")
                value = value[lane] if len(value) > 1 else np.broadcast_to(value, lane.shape)
                memory.store(instruction, lane, address + i * size, value)

        return store

    def _parameter(self, address: Int64, size: int) -> NDArray[Any]:
        index = address - _PARAM_BASE
        if len(index) and (index.min() < 0 or index.max() + size > len(self.parameters)):
            raise UnknownInstruction("a read outside the kernel's parameters")
        return self.parameters[index[:, None] + np.arange(size)].copy().view(f"u{size}").ravel()

    def count_access(self, instruction: Instruction, space: str, lane: Int64, address: Int64, size: int) -> None:
        self.result.counters.accesses += len(lane)
        if space == "generic":  # the others are the lane's own stack, which costs no sectors of a tensor
            space, lane, address = "global", lane[address >= GLOBAL_BASE], address[address >= GLOBAL_BASE]
        if self.count and space == "global":
            kind = "load" if instruction.opcode.startswith("ld") else "store"
            self.result.counters.global_access(kind, str(instruction), lane, address, size)
        elif self.count and space == "shared":
            self.result.counters.shared_access(lane, address, size)

    def _atomic(self, instruction: Instruction, mods: list[str]) -> Step:
        if mods != ["global", "gpu", "acq_rel", "add", "u32"]:
            raise UnknownInstruction(instruction.opcode)
        target, place, operand = instruction.operands
        assert isinstance(place, Address)
        base, value, write = self.reader(place.base, "u64"), self.reader(operand, "u32"), self.writer(target, "u32")

        def add() -> None:
            addresses = np.broadcast_to(base().astype(np.int64) + place.offset, (self.lanes,))
            values, before = np.broadcast_to(value(), (self.lanes,)), np.zeros(self.lanes, np.uint32)
            for lane in np.flatnonzero(self.mask).tolist():
                before[lane] = self.memory.add(instruction, lane, int(addresses[lane]), int(values[lane]), 4)
                self.clocks.synchronise(lane)
            write(before)

        return add

    # The schedule

    def run(self) -> Result:
        """Execute to the end; a barrier that is not reached by all ends it early, with a finding."""
        end = len(self.kernel.instructions)
        following = dict(zip(self.starts, self.starts[1:], strict=False))
        costs = {
            start: Counter(class_of(i.opcode) for i in self.kernel.instructions[start:stop])
            for start, stop in following.items()
        }
        waiting = np.zeros(self.lanes, bool)
        with np.errstate(all="ignore"):
            for _ in range(_STOP_AFTER):
                runnable = ~waiting & (self.pc < end)
                if not runnable.any():
                    break
                start = int(self.pc[runnable].min())
                here = self.pc == start
                ready = self._ready(start, here)
                waiting[here] = ~ready[here]
                if ready.any():
                    self._run_block(start, following[start], ready, costs[start])
            else:
                raise Stuck(f"{self.kernel.name} runs for more than {_STOP_AFTER} blocks of instructions")
        if waiting.any():
            self._report_stuck(waiting)
        # The steps refer to this object: without this, its arrays wait for the garbage collector.
        self.steps.clear()
        self.registers.clear()
        return self.result

    def _run_block(self, start: int, stop: int, lanes: Lanes, cost: Counter[str]) -> None:
        whole = bool(lanes.all())
        warps = int(lanes.reshape(-1, WARP).any(1).sum())
        for name, count in cost.items():
            self.result.counters.instructions[name] += count * warps
        self.pc[lanes] = stop
        for i in range(start, stop):
            instruction = self.kernel.instructions[i]
            self.mask, self.full = lanes, whole
            if instruction.guard:
                predicate = self.registers[instruction.guard]
                self.mask = lanes & (~predicate if instruction.negated else predicate)
                self.full = bool(self.mask.all())
            root = instruction.opcode.split(".")[0]
            if root == "bra":
                target = instruction.operands[0]
                assert isinstance(target, Symbol)
                if instruction.guard:
                    self.result.counters.branch(lanes, self.mask)
                self.pc[self.mask] = self.kernel.labels[target.name]
            elif root in ("ret", "exit"):
                self.pc[self.mask] = len(self.kernel.instructions)
            elif self.full or self.mask.any():
                self.steps[i]()

    def _ready(self, start: int, here: Lanes) -> Lanes:
        """Of the lanes that stand at ``start``, those that may go on: all, unless it waits for others."""
        if start >= len(self.kernel.instructions):
            return here
        root, *mods = self.kernel.instructions[start].opcode.split(".")
        if root not in COLLECTIVE or here.all():
            return here
        group = self.threads if root == "bar" and mods[0] == "sync" else WARP
        # Lanes past a block's threads do not exist here, so every lane of the group is awaited, as membermask -1 asks.
        return here & np.repeat(here.reshape(-1, group).all(1), group)

    def _report_stuck(self, waiting: Lanes) -> None:
        start = int(self.pc[waiting].min())
        instruction = self.kernel.instructions[start]
        at = np.flatnonzero(self.pc == start)
        block = int(at[0]) // self.threads
        mates = np.arange(block * self.threads, (block + 1) * self.threads)
        absent = int(mates[self.pc[mates] != start][0]) % self.threads
        stand = int(self.pc[block * self.threads + absent])
        ended = stand >= len(self.kernel.instructions)
        where = "has ended" if ended else f"waits at {self.kernel.instructions[stand]}"
        self.result.findings.append(
            Finding("barrier not reached by all lanes", str(instruction), block, int(at[0]) % self.threads, 0,
                    f"lane {absent} {where}", len(at))
        )  # fmt: skip
