"""Memory of the executed GPU, and the sanitizer that watches every access to it.

Each byte has a state (may it be touched, was it ever written, was it written by the kernel) and, once the kernel wrote
it, the lane that did and when. "When" is the lane's clock: the number of block barriers that it has passed, then the
number of warp barriers since. Two accesses are ordered if they are one lane's, if a block barrier lies between them
and they are one block's, if a warp barrier does and they are one warp's, or across blocks if the writer's block
released (an acq_rel atomic) after the write and the reader's block acquired before the read.

What is not ordered may happen in either order on a GPU, whatever order it happens in here. A write over a different
value is reported; a write of the value that is there already is not (Triton's replicated lanes all write it).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WARP = 32
BARRIER = 1 << 16  # the clock advances by this at a block barrier, by 1 at a warp's
SHARED_BASE = 1024  # not 0: an address that lost its base is then out of bounds
GLOBAL_BASE = 1 << 40  # above 32 bits: an address that was cut to 32 is then out of bounds
LOCAL_BASE = 1 << 36  # also where generic addresses find it
_ALIGNMENT = 256
_GAP = 512  # bytes between allocations that belong to nobody
_ALLOWED, _WRITTEN, _BY_KERNEL = 1, 2, 4

Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Finding:
    """What the sanitizer reports: a kind, the instruction, the first lane that did it, and the address."""

    kind: str
    instruction: str
    block: int
    lane: int
    address: int
    detail: str
    lanes: int = 1

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.instruction}, block {self.block} lane {self.lane}, address {self.address:#x}"
            f"{f' and {self.lanes - 1} more lanes' if self.lanes > 1 else ''}: {self.detail}"
        )


@dataclass
class Clocks:
    """Where every lane stands in the order of events, and which blocks have released and acquired."""

    threads: int
    blocks: int
    clock: Int64 = field(init=False)
    # Per block: who released last and who acquired first, and the clocks of these lanes then; -1: nobody.
    released: Int64 = field(init=False)
    released_by: Int64 = field(init=False)
    acquired: Int64 = field(init=False)
    acquired_by: Int64 = field(init=False)

    def __post_init__(self) -> None:
        self.clock = np.zeros(self.threads * self.blocks, np.int64)
        for name in ("released", "released_by", "acquired", "acquired_by"):
            setattr(self, name, np.full(self.blocks, -1, np.int64))

    def synchronise(self, lane: int) -> None:
        """An acquire-release atomic by ``lane``."""
        block = lane // self.threads
        self.released[block], self.released_by[block] = self.clock[lane], lane
        if self.acquired[block] < 0:
            self.acquired[block], self.acquired_by[block] = self.clock[lane], lane

    def ordered(self, writer: Int64, when: Int64, lane: Int64) -> NDArray[np.bool_]:
        """Whether what ``writer`` did at ``when`` comes before what ``lane`` does now."""
        now = self.clock[lane]
        block, other = lane // self.threads, writer // self.threads
        # Before the writer's block released, and after this lane's acquired, by the same rule as within one block.
        released = (self.released[other] >= 0) & _before(writer, when, self.released_by[other], self.released[other])
        acquired = (self.acquired[block] >= 0) & _before(self.acquired_by[block], self.acquired[block], lane, now)
        return np.where(block == other, _before(writer, when, lane, now), released & acquired)


def _before(one: Int64, when: Int64, other: Int64, now: Int64) -> NDArray[np.bool_]:
    """Of two lanes of a block: whether what ``one`` did at ``when`` comes before what ``other`` does at ``now``."""
    same_warp = one // WARP == other // WARP
    return (one == other) | (same_warp & (when < now)) | (when // BARRIER < now // BARRIER)


class Memory:
    """One space. ``window`` is the index of each lane's first byte: 0 for global memory, its block's or its own."""

    def __init__(self, name: str, base: int, size: int, clocks: Clocks, window: Int64, findings: list[Finding]) -> None:
        self.name, self.base, self.size = name, base, size
        self.clocks, self.window, self.findings = clocks, window, findings
        whole = max(-(-(int(window.max(initial=0)) + size) // 16) * 16, 16)
        self.data = np.zeros(whole, np.uint8)
        self.state = np.zeros(whole, np.uint8)
        self.writer = np.zeros(whole, np.int64)
        self.when = np.zeros(whole, np.int64)
        # Who read a byte last, and when; -2: lanes of several warps did. Only shared memory is written after a read.
        self.reader = np.full(whole if name == "shared" else 0, -1, np.int64)
        self.read_at = np.zeros(len(self.reader), np.int64)

    def report(
        self, kind: str, instruction: object, lane: Int64, address: Int64, bad: NDArray[np.bool_], detail: str
    ) -> None:
        """One finding per instruction and kind."""
        text = str(instruction)
        if bad.any() and not any(found.kind == kind and found.instruction == text for found in self.findings):
            first = int(np.flatnonzero(bad)[0])
            block, thread = divmod(int(lane[first]), self.clocks.threads)
            self.findings.append(Finding(kind, text, block, thread, int(address[first]), detail, int(bad.sum())))

    def _index(
        self, instruction: object, lane: Int64, address: Int64, size: int
    ) -> tuple[Int64, Int64, NDArray[np.bool_]]:
        """Element indices of ``size`` bytes each, for the accesses that are aligned and inside; and which those are."""
        offset = address - self.base
        misaligned = address % size != 0
        self.report("misaligned access", instruction, lane, address, misaligned, f"not a multiple of {size}")
        good = ~misaligned & (offset >= 0) & (offset + size <= self.size)
        index = np.where(good, (offset + self.window[lane]) // size, 0)
        inside = good & ((self._states(size)[index] & _repeat(_ALLOWED, size)) == _repeat(_ALLOWED, size))
        outside = ~inside & ~misaligned
        self.report("out of bounds", instruction, lane, address, outside, f"{size} bytes of {self.name} memory")
        return index[inside], lane[inside], inside

    def _states(self, size: int) -> NDArray[np.unsignedinteger]:
        return self.state.view(f"u{size}")

    def load(self, instruction: object, lane: Int64, address: Int64, size: int) -> NDArray[np.unsignedinteger]:
        """``size`` bytes per lane; zeros where the access is not allowed."""
        index, lane, inside = self._index(instruction, lane, address, size)
        result = np.zeros(len(inside), f"u{size}")
        result[inside] = self.data.view(f"u{size}")[index]
        state = self._states(size)[index]
        written = _repeat(_WRITTEN, size)
        where = address[inside]
        self.report("read of unwritten bytes", instruction, lane, where, (state & written) != written, self.name)
        by_kernel = (state & _repeat(_BY_KERNEL, size)) != 0
        if by_kernel.any():
            self._check_read(instruction, index[by_kernel], lane[by_kernel], where[by_kernel], size)
        if len(self.reader):
            self._remember_read(index, lane, size)
        return result

    def _check_read(self, instruction: object, index: Int64, lane: Int64, address: Int64, size: int) -> None:
        for byte in range(size):
            place = index * size + byte
            mine = (self.state[place] & _BY_KERNEL) == 0
            ordered = mine | self.clocks.ordered(self.writer[place], self.when[place], lane)
            self.report(
                f"{self.name} race", instruction, lane, address + byte, ~ordered, "read and write without a barrier"
            )
            if size > 2 and byte == 0 and (self.writer[place] == self.writer[place + size - 1]).all():
                return  # written as one

    def _remember_read(self, index: Int64, lane: Int64, size: int) -> None:
        now = self.clocks.clock[lane]
        reader, read_at = self.reader.reshape(-1, size), self.read_at.reshape(-1, size)
        before, when = reader[index], read_at[index]
        others = (when // BARRIER == (now // BARRIER)[:, None]) & (before // WARP != (lane // WARP)[:, None])
        marks = np.where(others & (before != -1), -2, lane[:, None])
        reader[index] = marks
        read_at[index] = now[:, None]
        # Two lanes of one instruction: the last one stands there now, the others see that it is not theirs.
        lost = ((reader[index] // WARP) != (lane // WARP)[:, None]) | (marks == -2)
        if lost.any():
            rows, columns = np.nonzero(lost)
            reader[index[rows], columns] = -2

    def store(self, instruction: object, lane: Int64, address: Int64, value: NDArray[np.unsignedinteger]) -> None:
        size = value.dtype.itemsize
        index, lane, inside = self._index(instruction, lane, address, size)
        value, address = value[inside], address[inside]
        data, states = self.data.view(f"u{size}"), self._states(size)
        writer, when = self.writer.reshape(-1, size), self.when.reshape(-1, size)
        kind = f"{self.name} race"
        now = self.clocks.clock[lane]
        again = ((states[index] & _repeat(_BY_KERNEL, size)) != 0) & (data[index] != value)
        if again.any():
            kinds = kind
            ordered = self._written_before(index[again], lane[again], size)
            across = self.writer[index[again] * size] // self.clocks.threads != lane[again] // self.clocks.threads
            if (across & ~ordered).any():
                kinds = "conflicting writes of two blocks"
            detail = "over a different value without a barrier"
            self.report(kinds, instruction, lane[again], address[again], ~ordered, detail)
        if len(self.reader):
            reader, read_at = self.reader.reshape(-1, size)[index], self.read_at.reshape(-1, size)[index]
            same_epoch = (read_at // BARRIER == (now // BARRIER)[:, None]) & (reader != -1)
            other_warp = (reader == -2) | (reader // WARP != (lane // WARP)[:, None])
            race = (same_epoch & other_warp).any(1) & (data[index] != value)
            self.report(kind, instruction, lane, address, race, "write after another warp's read without a barrier")
        data[index] = value
        states[index] |= _repeat(_WRITTEN | _BY_KERNEL, size)
        writer[index] = lane[:, None]
        when[index] = now[:, None]
        lost = data[index] != value
        if lost.any():
            theirs = self.writer[index * size] // self.clocks.threads
            across = (theirs != lane // self.clocks.threads)[lost].any()
            kind = "conflicting writes of two blocks" if across else kind
            self.report(kind, instruction, lane, address, lost, "two lanes of one instruction write different values")

    def _written_before(self, index: Int64, lane: Int64, size: int) -> NDArray[np.bool_]:
        ordered = np.ones(len(index), bool)
        for byte in range(size):
            place = index * size + byte
            mine = (self.state[place] & _BY_KERNEL) == 0
            ordered &= mine | self.clocks.ordered(self.writer[place], self.when[place], lane)
        return ordered

    def add(self, instruction: object, lane: int, address: int, value: int, size: int) -> int:
        """An atomic addition; returns what was there. Atomics on one address do not race with one another."""
        lanes, addresses = np.array([lane]), np.array([address])
        index, _, _ = self._index(instruction, lanes, addresses, size)
        if not len(index):
            return 0
        data = self.data.view(f"u{size}")
        before = int(data[index[0]])
        unwritten = (self._states(size)[index] & _repeat(_WRITTEN, size)) != _repeat(_WRITTEN, size)
        self.report("read of unwritten bytes", instruction, lanes, addresses, unwritten, self.name)
        data[index[0]] = (before + value) % (1 << 8 * size)
        return before


class Generic:
    """An address without a space: of local memory from its base up to global memory's, else of global memory."""

    def __init__(self, local: Memory, memory: Memory) -> None:
        self._local, self._global = local, memory

    def report(
        self, kind: str, instruction: object, lane: Int64, address: Int64, bad: NDArray[np.bool_], detail: str
    ) -> None:
        self._global.report(kind, instruction, lane, address, bad, detail)

    def load(self, instruction: object, lane: Int64, address: Int64, size: int) -> NDArray[np.unsignedinteger]:
        result = np.zeros(len(lane), f"u{size}")
        for memory, mine in self._spaces(address):
            result[mine] = memory.load(instruction, lane[mine], address[mine], size)
        return result

    def store(self, instruction: object, lane: Int64, address: Int64, value: NDArray[np.unsignedinteger]) -> None:
        for memory, mine in self._spaces(address):
            memory.store(instruction, lane[mine], address[mine], value[mine])

    def _spaces(self, address: Int64) -> list[tuple[Memory, NDArray[np.bool_]]]:
        local = (address >= LOCAL_BASE) & (address < GLOBAL_BASE)
        return [(memory, mine) for memory, mine in ((self._local, local), (self._global, ~local)) if mine.any()]


def _repeat(bit: int, size: int) -> np.unsignedinteger:
    return np.dtype(f"u{size}").type(sum(bit << 8 * i for i in range(size)))


class Arena:
    """Global memory: named allocations with gaps between them, each mirrored from an array on the host."""

    def __init__(self) -> None:
        self.size = _GAP
        self.places: dict[int, tuple[int, Bytes]] = {}

    def place(self, key: int, content: Bytes) -> int:
        """The device address of the allocation ``key``, made on first mention."""
        if key not in self.places:
            self.places[key] = (self.size, content)
            self.size = -(-(self.size + len(content) + _GAP) // _ALIGNMENT) * _ALIGNMENT
        return GLOBAL_BASE + self.places[key][0]

    def memory(self, clocks: Clocks, findings: list[Finding]) -> Memory:
        memory = Memory("global", GLOBAL_BASE, self.size, clocks, np.zeros(len(clocks.clock), np.int64), findings)
        for begin, content in self.places.values():
            memory.data[begin : begin + len(content)] = content
        return memory

    def copy_back(self, memory: Memory) -> None:
        for begin, content in self.places.values():
            content[:] = memory.data[begin : begin + len(content)]


def permit_view(memory: Memory, address: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int,
                written: bool) -> Int64:  # fmt: skip
    """Make exactly the bytes of a strided tensor accessible (strides in elements); returns their indices."""
    elements = np.zeros(1, np.int64)
    for extent, stride in zip(shape, strides, strict=True):
        elements = (elements[:, None] + np.arange(extent) * stride).ravel()
    places = ((address - GLOBAL_BASE + elements * size)[:, None] + np.arange(size)).ravel()
    memory.state[places] |= _ALLOWED | (_WRITTEN if written else 0)
    return places


def unwritten(memory: Memory, places: Int64) -> Int64:
    """Those of ``places`` that hold no value yet."""
    return places[(memory.state[places] & _WRITTEN) == 0]
