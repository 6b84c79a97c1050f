"""What the GPU kernels compile to, per preset, dtype and architecture: facts that need no GPU.

Triton: registers, spills, launches, instructions, global accesses by width, and the bytes that must be moved at batch
128 with the time that the memory of one GPU of that architecture takes for them. That floor is a model, not a
measurement; ``measured_us`` stays empty until ``python -m bench kernels --device cuda`` has run on that GPU.
CUDA: registers, spills and shared memory of every kernel in ``csrc/``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch

from bench.measure import RESULTS, significant, write_csv
from tests.cuda_compile import NVCC, SOURCES, kernels_of
from tests.triton_compile import ARCHITECTURES, KERNELS, PRESETS, case, launches_of

BATCH = 128
# Architecture -> a GPU of it and its memory bandwidth in bytes per second, from NVIDIA's data sheets (SXM models).
GPUS = {80: ("A100 80GB", 2.039e12), 90: ("H100", 3.35e12), 100: ("B200", 8.0e12)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHOWN = (
    "kernel", "preset", "dtype", "arch", "launches", "programs", "warps", "registers", "spilled_bytes", "shared_bytes",
    "ptx_instructions", "sass_instructions", "loads", "stores", "bytes_floor", "gpu", "floor_us", "measured_us",
    "why_not_128",
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
                            "gpu": GPUS[capability][0],
                            "floor_us": significant(one.bytes_floor / GPUS[capability][1] * 1e6),
                            "measured_us": "",
                            "why_not_128": one.reason,
                        }


def _by_width(accesses: dict[int, int]) -> str:
    """``"32 bits x 13, 64 bits x 4"``: global accesses in the PTX, those of a branch not taken included."""
    return ", ".join(f"{bits} bits x {count}" for bits, count in sorted(accesses.items()))


def cuda_rows() -> Iterator[dict[str, object]]:
    """One row per CUDA kernel and architecture; none without nvcc."""
    if NVCC is not None:
        for source in SOURCES:
            for capability in ARCHITECTURES:
                for kernel in kernels_of(source, capability):
                    yield {"source": source.name, **asdict(kernel)}


def main() -> None:
    """Print both tables and write them to ``bench/results/``."""
    for name, found in (("kernels_static.csv", rows()), ("cuda_static.csv", cuda_rows())):
        table: list[dict[str, object]] = []
        for row in found:
            shown = [column for column in _SHOWN if column in row] or list(row)
            if not table:
                print(*shown, sep="  ")
            table.append(row)
            print(*(str(row[column]).ljust(len(column)) for column in shown), sep="  ", flush=True)
        if table:
            write_csv(RESULTS / name, table)


if __name__ == "__main__":
    main()
