"""Instructions of a whole warp or block: barriers, shuffles, reductions over a warp, matrix accesses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.ptx.arithmetic import canonical
from tests.ptx.instructions import DTYPES, UnknownInstruction
from tests.ptx.memory import BARRIER, WARP
from tests.ptx.parser import Address, Immediate, Instruction, Vector

if TYPE_CHECKING:
    from tests.ptx.executor import Executor

COLLECTIVE = ("bar", "shfl", "redux", "ldmatrix", "stmatrix")
_FULL = 0xFFFFFFFF
Step = Callable[[], None]

# Operation and type -> the function, and what an absent lane counts as.
_REDUCTIONS: dict[tuple[str, ...], tuple[Any, float]] = {
    ("max", "f32"): (np.fmax, np.nan),
    ("min", "f32"): (np.fmin, np.nan),
    ("add", "s32"): (np.add, 0),
    ("add", "u32"): (np.add, 0),
    ("max", "s32"): (np.maximum, -(2**31)),
    ("min", "s32"): (np.minimum, 2**31 - 1),
}


def collective(machine: Executor, instruction: Instruction, mods: list[str]) -> Step:
    """The step of an instruction in which lanes take part together; the schedule brings them here at once."""
    root = instruction.opcode.split(".")[0]

    def barrier(amount: int) -> Step:
        def step() -> None:
            clock = machine.clocks.clock
            clock[machine.mask] = (
                (clock[machine.mask] // BARRIER + 1) * BARRIER if amount > 1 else clock[machine.mask] + 1
            )

        return step

    if instruction.opcode == "bar.sync" and instruction.operands == (Immediate(0),):
        return barrier(BARRIER)
    if instruction.opcode == "bar.warp.sync" and instruction.operands == (Immediate(-1),):
        return barrier(1)
    if root in ("ldmatrix", "stmatrix"):
        return _matrices(machine, instruction, mods)
    if root == "shfl" and mods[0] == "sync" and mods[1] in ("bfly", "idx", "up", "down") and mods[2] == "b32":
        return _shuffle(machine, instruction, mods[1])
    if root == "redux" and mods[0] == "sync" and tuple(mods[1:]) in _REDUCTIONS:
        return _reduce(machine, instruction, mods[2], *_REDUCTIONS[mods[1], mods[2]])
    raise UnknownInstruction(instruction.opcode)


def _shuffle(machine: Executor, instruction: Instruction, mode: str) -> Step:
    target, source, offset, clamp, members = instruction.operands
    if members != Immediate(-1):
        raise UnknownInstruction("membermask")
    read, write = machine.reader(source, "b32"), machine.writer(target, "b32")
    by, bound = machine.reader(offset, "u32"), machine.reader(clamp, "u32")
    lane = np.arange(machine.lanes)
    within = lane % WARP

    def shuffle() -> None:
        value = np.broadcast_to(read(), (machine.lanes,))
        b, c = by().astype(np.int64) & 31, bound().astype(np.int64)
        segment, limit = (c >> 8) & 31, c & 31
        low = within & segment
        high = low | (limit & ~segment)
        other = {
            "bfly": within ^ b,
            "idx": low | (b & ~segment),
            "up": within - b,
            "down": within + b,
        }[mode]
        inside = other >= high if mode == "up" else other <= high
        source_lane = np.where(inside, other, within) + lane - within
        outside = machine.mask & ~machine.mask[source_lane]
        at = np.flatnonzero(outside)
        machine.memory.report(
            "shuffle from an inactive lane", instruction, at, source_lane[at], outside[at], "its value is undefined"
        )
        write(value[source_lane])

    return shuffle


def _reduce(machine: Executor, instruction: Instruction, kind: str, function: Any, unit: float) -> Step:
    """redux.sync: every lane receives the reduction over its warp; a NaN counts only where all are NaN."""
    target, source, members = instruction.operands
    read, write, mask = machine.reader(source, kind), machine.writer(target, kind), machine.reader(members, "u32")

    def reduce() -> None:
        if not (np.broadcast_to(mask(), (machine.lanes,))[machine.mask] == _FULL).all():
            raise UnknownInstruction(f"{instruction}: membermask")
        value = np.where(machine.mask, read(), DTYPES[kind].type(unit)).reshape(-1, WARP)
        found = np.repeat(function.reduce(value, axis=1, dtype=value.dtype), WARP)
        write(canonical(found) if kind == "f32" else found)

    return reduce


def _matrices(machine: Executor, instruction: Instruction, mods: list[str]) -> Step:
    """ldmatrix and stmatrix: lanes 8 j .. 8 j + 7 address the rows of matrix j, eight 16-bit elements each.

    The j-th register of lane i holds elements 2 (i mod 4) and 2 (i mod 4) + 1 of row i div 4 of matrix j; with .trans
    of column i div 4.
    """
    counts = {"x1": 1, "x2": 2, "x4": 4}
    loads, transposed = instruction.opcode.startswith("ldmatrix"), mods[4] == "trans"
    if [mods[0], mods[1], mods[2], *mods[4 + transposed :]] != ["sync", "aligned", "m8n8", "shared", "b16"]:
        raise UnknownInstruction(instruction.opcode)
    place, pairs = reversed(instruction.operands) if loads else instruction.operands
    assert isinstance(pairs, Vector) and isinstance(place, Address) and len(pairs.parts) == counts[mods[3]]
    base = machine.reader(place.base, "u32")
    reads = [] if loads else [machine.reader(part, "b32") for part in pairs.parts]
    writes = [machine.writer(part, "b32") for part in pairs.parts] if loads else []

    def step() -> None:
        lane = np.flatnonzero(machine.mask)
        address = np.broadcast_to(base().astype(np.int64) + place.offset, (machine.lanes,))
        long, short = lane % WARP // 4, lane % 4 * 2
        for j in range(len(pairs.parts)):
            row = address[lane - lane % WARP + 8 * j + long]
            machine.shared.report("misaligned access", instruction, lane, row, row % 16 != 0, "a row of 16 bytes")
            machine.count_access(instruction, "shared", lane, row + 2 * short, 4)
            value = np.zeros(machine.lanes, np.uint32) if loads else np.broadcast_to(reads[j](), (machine.lanes,))
            for half in (0, 1):
                rows, columns = (short + half, long) if transposed else (long, short + half)
                at = address[lane - lane % WARP + 8 * j + rows] + 2 * columns
                if loads:
                    found = machine.shared.load(instruction, lane, at, 2)
                    value[lane] |= found.astype(np.uint32) << np.uint32(16 * half)
                else:
                    element = (value[lane] >> np.uint32(16 * half)).astype(np.uint16)
                    machine.shared.store(instruction, lane, at, element)
            if loads:
                writes[j](value)

    return step
