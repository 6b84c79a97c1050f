"""What the GPU kernels compile to, per preset, dtype and architecture: facts that need no GPU.

Triton: registers, spills, launches, instructions, global accesses by width, and the bytes that must be moved at batch
128 with the time that the memory of one GPU of that architecture takes for them. Then what the executed PTX
(``tests/ptx``) does at that batch: warp instructions per image, bytes of 32-byte sectors over the floor (``moved`` over
all requests, some of which L1 answers; ``touched`` each sector once), sectors per request and the fewest possible,
shared-memory bank conflicts, warps that diverge. ``model_us`` is max(bytes / bandwidth, instructions / issue rate).
Floor and model are models, not measurements. ``measured_us`` is of a whole call in fp32, Python's part included, from
``bench/results/kernels.csv``: empty until ``python -m bench kernels --device cuda`` has run on that GPU. CUDA: the same
of every kernel in ``csrc/``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from bench.kernels import fill_in
from bench.measure import RESULTS, read_csv, significant, write_csv
from fastinfogan.ops.arguments import DTYPES
from fastinfogan.ops.sample_latents import sample_latents
from tests.cuda_compile import NVCC, SOURCES, kernels_of, ptx_of
from tests.ptx.cases import case as executed_case
from tests.ptx.counters import GPUS, model_seconds
from tests.ptx.cuda import WARPS_PER_BLOCK, blocks_for, pack, recognize, symbol_of, unpack
from tests.ptx.device import run
from tests.ptx.executor import Result
from tests.ptx.parser import parse
from tests.triton_compile import ARCHITECTURES, KERNELS, PRESETS, Launch, access_bits, case, launches_of

BATCH = 128
MODEL = "model_us (model, not measured)"
CUDA_KERNELS = ("pack_kernel", "unpack_kernel", "recognize_kernel")
_SHOWN = (
    "kernel", "preset", "dtype", "arch", "launches", "programs", "warps", "registers", "spilled_bytes", "shared_bytes",
    "ptx_instructions", "sass_instructions", "loads", "stores", "bytes_floor", "gpu", "floor_us",
    "instructions_per_image", "moved_over_floor", "touched_over_floor", "sectors_per_load", "least_per_load",
    "sectors_per_store", "least_per_store", "bank_conflicts", "divergent_warps", MODEL, "measured_us", "why_not_128",
)  # fmt: skip


def rows() -> Iterator[dict[str, object]]:
    """One row per launch; an op that made two launches would have two."""
    for kernel in KERNELS:
        for preset, (spec, _) in PRESETS.items():
            if kernel == "unpack_codes" and not spec.categorical:
                continue  # nothing to launch
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
                            "gpu": GPUS[capability].name,
                            "floor_us": significant(one.bytes_floor / GPUS[capability].bandwidth * 1e6),
                            **_executed(kernel, preset, dtype, launch, one.bytes_floor),
                            "measured_us": "",
                            "why_not_128": one.reason,
                        }


def _executed(kernel: str, preset: str, dtype: torch.dtype, compiled: Launch, bytes_floor: int) -> dict[str, object]:
    """What the kernel does on random values at this batch, executed lane by lane; no GPU and no clock is involved."""
    output = run(executed_case(kernel, *PRESETS[preset], dtype, BATCH).launcher, compiled.capability, count=True)
    blocks = len(output.launches) * math.prod(output.launches[0].grid)
    issued_per_ptx = compiled.sass_instructions / compiled.ptx_instructions
    return _figures(output.results[0], compiled.capability, bytes_floor, blocks, compiled.warps, issued_per_ptx)


def _figures(
    result: Result, capability: int, bytes_floor: int, blocks: int, warps: int, issued_per_ptx: float
) -> dict[str, object]:
    """The counters of one execution. PTX is not what is issued: ptxas fuses and splits, by the static counts' ratio."""
    if result.findings:
        raise AssertionError("\n".join(map(str, result.findings)))
    counters = result.counters
    moved = 32 * counters.sectors.total()
    issued = counters.warp_instructions * issued_per_ptx
    figures: dict[str, object] = {
        "instructions_per_image": significant(counters.warp_instructions / BATCH),
        "moved_over_floor": significant(moved / bytes_floor),
        "touched_over_floor": significant(counters.touched_bytes / bytes_floor),
    }
    for kind in ("load", "store"):
        figures[f"sectors_per_{kind}"] = significant(counters.sectors_per_request(kind))
        figures[f"least_per_{kind}"] = significant(counters.least_sectors[kind] / max(counters.requests[kind], 1))
    seconds = model_seconds(GPUS[capability], counters.touched_bytes, issued, blocks, warps)
    return figures | {
        "bank_conflicts": counters.bank_conflicts,
        "divergent_warps": counters.divergent_branches,
        MODEL: significant(seconds * 1e6),
    }


def _by_width(accesses: dict[int, int]) -> str:
    """``"32 bits x 13, 64 bits x 4"``: global accesses in the PTX, those of a branch not taken included."""
    return ", ".join(f"{bits} bits x {count}" for bits, count in sorted(accesses.items()))


def cuda_rows() -> Iterator[dict[str, object]]:
    """One row per CUDA kernel, preset, storage type and architecture; none without nvcc."""
    if NVCC is None:
        return
    (source,) = SOURCES
    for capability in ARCHITECTURES:
        compiled = kernels_of(source, capability)
        for kernel in CUDA_KERNELS:
            for preset, (spec, _) in PRESETS.items():
                if kernel == "unpack_kernel" and not spec.categorical:
                    continue  # nothing to launch
                for dtype in DTYPES:
                    symbol = symbol_of(kernel, dtype)
                    (one,) = (one for one in compiled if symbol in one.symbol)
                    opcodes = [i.opcode for i in parse(ptx_of(source, capability), symbol).instructions]
                    result, floor = _cuda_executed(kernel, preset, dtype, capability)
                    blocks, per_ptx = blocks_for(BATCH), one.sass_instructions / len(opcodes)
                    yield {
                        "source": source.name,
                        "kernel": kernel,
                        "preset": preset,
                        "batch": BATCH,
                        "dtype": str(dtype).removeprefix("torch."),
                        "arch": f"sm_{capability}",
                        "launches": 1,
                        "programs": blocks,
                        "warps": WARPS_PER_BLOCK,
                        "registers": one.registers,
                        "spilled_bytes": one.spilled_bytes,
                        "shared_bytes": one.shared_bytes,
                        "ptx_instructions": len(opcodes),
                        "sass_instructions": one.sass_instructions,
                        "loads": _by_width(access_bits("\n".join(opcodes), "ld")),
                        "stores": _by_width(access_bits("\n".join(opcodes), "st")),
                        "bytes_floor": floor,
                        "gpu": GPUS[capability].name,
                        "floor_us": significant(floor / GPUS[capability].bandwidth * 1e6),
                        **_figures(result, capability, floor, blocks, WARPS_PER_BLOCK, per_ptx),
                        "measured_us": "",
                    }


def _cuda_executed(kernel: str, preset: str, dtype: torch.dtype, capability: int) -> tuple[Result, int]:
    """One CUDA kernel on random values, executed lane by lane, and the bytes it must move at least."""
    spec = PRESETS[preset][0]
    if kernel == "pack_kernel":
        noise = torch.randn(BATCH, spec.noise)
        _, categories, continuous = sample_latents(spec, BATCH, seed=1, step=0, backend="reference")
        z, result = pack(noise, categories, continuous, spec.categorical, dtype, capability, count=True)
        return result, _bytes(noise, categories, continuous, z)
    if kernel == "unpack_kernel":
        z = torch.randn(BATCH, spec.dim).to(dtype)
        categories, result = unpack(z, spec.noise, spec.categorical, capability, count=True)
        return result, BATCH * sum(spec.categorical) * z.itemsize + _bytes(categories)
    recognition = torch.randn(BATCH, spec.head_dim).to(dtype)
    found, result = recognize(recognition, spec.categorical, capability, count=True)
    return result, _bytes(recognition, *found)


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


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
    fill_in(RESULTS, read_csv(RESULTS / "kernels.csv"))
