"""What an execution costs: instructions by class, sectors, bank conflicts, divergent branches; and a time model.

Counted per warp, as hardware issues and coalesces: an instruction is issued once for a warp however many of its lanes
take part; a request is one memory instruction of one warp.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WARP = 32
SECTOR = 32
_BANKS = 32
_CLASSES = {
    **dict.fromkeys(("ld", "st", "atom", "ldmatrix", "stmatrix"), "memory"), "bra": "control", "ret": "control",
    "bar": "control", "shfl": "shuffle", "vote": "shuffle", "redux": "shuffle", "mov": "move", "selp": "move",
    "prmt": "move", "cvt": "convert", "cvta": "convert", "setp": "compare",
}  # fmt: skip


def class_of(opcode: str) -> str:
    """memory, control, shuffle, move, convert, compare, special (approximations), float or integer."""
    root, *mods = opcode.split(".")
    if root == "ld" and mods[0] == "param":
        return "move"
    if root in _CLASSES:
        return _CLASSES[root]
    if "approx" in mods or "full" in mods or root in ("rcp", "sqrt", "div"):
        return "special"
    return "float" if mods and mods[-1] in ("f32", "f32x2", "f16", "bf16", "f16x2", "bf16x2") else "integer"


@dataclass
class Counters:
    """instructions: warp-level, by class. Bytes: of sectors moved, summed over requests; touched: distinct sectors."""

    instructions: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)
    least_sectors: Counter[str] = field(default_factory=Counter)
    accesses: int = 0  # lanes that took part in a shared or global access
    bank_conflicts: int = 0
    divergent_branches: int = 0
    # Instruction text -> sectors beyond the least, to find the access that causes them.
    uncoalesced: Counter[str] = field(default_factory=Counter)
    _touched: dict[str, list[NDArray[np.int64]]] = field(default_factory=lambda: {"load": [], "store": []})

    @property
    def warp_instructions(self) -> int:
        return self.instructions.total()

    @property
    def touched_bytes(self) -> int:
        """Bytes of all distinct sectors: what DRAM moves at least for this access pattern."""
        return sum(len(np.unique(np.concatenate(parts))) * SECTOR for parts in self._touched.values() if parts)

    def sectors_per_request(self, kind: str) -> float:
        return self.sectors[kind] / max(self.requests[kind], 1)

    def global_access(
        self, kind: str, text: str, lane: NDArray[np.int64], address: NDArray[np.int64], size: int
    ) -> None:
        """One load or store: per warp, its sectors, and the fewest that its distinct bytes fit in."""
        if not len(lane):
            return
        warp = lane // WARP
        sector = address // SECTOR
        pairs = np.unique(np.stack([warp, sector]), axis=1) if len(lane) > 1 else np.stack([warp, sector])
        places = np.unique(np.stack([warp, address]), axis=1)
        n_bytes = np.bincount(places[0] - warp.min()) * size
        least = int((-(-n_bytes // SECTOR)).sum())
        self.requests[kind] += int((n_bytes > 0).sum())
        self.sectors[kind] += pairs.shape[1]
        self.least_sectors[kind] += least
        if pairs.shape[1] > least:
            self.uncoalesced[text] += pairs.shape[1] - least
        self._touched[kind].append(np.unique(sector))

    def shared_access(self, lane: NDArray[np.int64], address: NDArray[np.int64], size: int) -> None:
        """Extra wavefronts: 4-byte words of one bank that a group of lanes asks for together, beyond the first.

        A warp's 8-byte accesses are made in two halves, its 16-byte accesses in four quarters.
        """
        group = (lane // WARP) * 4 + (lane % WARP) * min(max(size // 4, 1), 4) // WARP
        words = address[:, None] // 4 + np.arange(max(size // 4, 1))
        key = np.unique((group[:, None] * (1 << 32) + words).ravel())
        per_bank = Counter(zip((key >> 32).tolist(), (key % _BANKS).tolist(), strict=True))
        worst: dict[int, int] = {}
        for (one, _), count in per_bank.items():
            worst[one] = max(worst.get(one, 0), count)
        self.bank_conflicts += sum(count - 1 for count in worst.values())

    def branch(self, lanes: NDArray[np.bool_], taken: NDArray[np.bool_]) -> None:
        """Count the warps some of whose lanes take the branch and some do not."""
        self.divergent_branches += int(
            (taken.reshape(-1, WARP).any(1) & (lanes & ~taken).reshape(-1, WARP).any(1)).sum()
        )


@dataclass(frozen=True)
class GPU:
    """From NVIDIA's data sheets and white papers (SXM models): bytes per second, multiprocessors, boost clock."""

    name: str
    bandwidth: float
    multiprocessors: int
    clock: float


GPUS = {
    80: GPU("A100 80GB", 2.039e12, 108, 1.41e9),
    90: GPU("H100", 3.35e12, 132, 1.98e9),
    100: GPU("B200", 8.0e12, 148, 1.965e9),
}
_SCHEDULERS = 4  # warp instructions a multiprocessor issues per clock, if it has as many warps


def model_seconds(gpu: GPU, moved_bytes: int, warp_instructions: float, blocks: int, warps: int) -> float:
    """max(bytes / bandwidth, instructions / issue rate): a lower bound, not a prediction, and not measured.

    Few blocks leave multiprocessors idle, and fewer warps than schedulers leave schedulers idle, so the issue rate is
    that of the busiest multiprocessor. Latency of memory and of the launch are not in it.
    """
    rounds = -(-blocks // gpu.multiprocessors)
    resident = min(_SCHEDULERS, warps * rounds)
    issue = rounds * (warp_instructions / max(blocks, 1)) / (resident * gpu.clock)
    return max(moved_bytes / gpu.bandwidth, issue)
