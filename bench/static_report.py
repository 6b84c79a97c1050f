"""What the Triton kernels compile to, per preset, dtype and architecture: facts that need no GPU.

Registers, spills, launches, instructions, global accesses by width and the bytes that must be moved at batch 128.
Nothing here is a time: those are measured on a device or left empty.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.triton_compile import ARCHITECTURES, KERNELS, PRESETS, case, launches_of

RESULTS = Path(__file__).parent / "results" / "kernels_static.csv"
BATCH = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHOWN = (
    "kernel", "preset", "dtype", "arch", "launches", "programs", "warps", "registers", "spilled_bytes", "shared_bytes",
    "ptx_instructions", "sass_instructions", "loads", "stores", "bytes_floor", "why_not_128",
)  # fmt: skip


def rows() -> Iterator[dict[str, object]]:
    """One row per launch; an op that made two launches would have two."""
    for kernel in KERNELS:
        for preset in PRESETS:
            for dtype in DTYPES:
                one = case(kernel, preset, dtype, BATCH)
                for capability in ARCHITECTURES:
                    launches = launches_of(one.launcher, capability)
                    for launch in launches:
                        programs = 1
                        for extent in launch.grid:
                            programs *= extent
                        yield {
                            "kernel": kernel,
                            "preset": preset,
                            "batch": BATCH,
                            "dtype": str(dtype).removeprefix("torch."),
                            "arch": f"sm_{capability}",
                            "launches": len(launches),
                            "programs": programs,
                            "warps": launch.warps,
                            "registers": launch.registers,
                            "spilled_bytes": launch.spilled_bytes,
                            "shared_bytes": launch.shared_bytes,
                            "ptx_instructions": launch.ptx_instructions,
                            "sass_instructions": launch.sass_instructions,
                            "loads": _by_width(launch.access_bits("ld")),
                            "stores": _by_width(launch.access_bits("st")),
                            "widest_store_the_layout_allows": one.store_bits,
                            "bytes_floor": one.bytes_floor,
                            "why_not_128": one.reason,
                        }


def _by_width(accesses: dict[int, int]) -> str:
    """``"32 bits x 13, 64 bits x 4"``: global accesses in the PTX, those of a branch not taken included."""
    return ", ".join(f"{bits} bits x {count}" for bits, count in sorted(accesses.items()))


def main() -> None:
    """Print the table and write it to ``bench/results/kernels_static.csv``."""
    table: list[dict[str, object]] = []
    for row in rows():
        if not table:
            print(*_SHOWN, sep="  ")
        table.append(row)
        print(*(str(row[name]).ljust(len(name)) for name in _SHOWN), sep="  ", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"{len(table)} rows written to bench/results/{RESULTS.name}")


if __name__ == "__main__":
    main()
