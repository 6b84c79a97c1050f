"""The fused ops, backend by backend: microseconds per call and ratios to the eager reference.

Each op does what one training iteration asks of it; ``head_loss`` is forward and gradients of the G phase. On a CPU the
contestants are the C++ extension, the plain PyTorch reference, and that reference under torch.compile; on a GPU Triton
takes part, and calls are replayed from a graph, as in training. ``floor_bytes`` is the least that any implementation
must read and write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import tyro

from bench import plots
from bench.measure import (
    RESULTS,
    announce,
    in_turns,
    put_beside_model,
    quantiles,
    repeated,
    require_turns,
    results_file,
    significant,
    write_csv,
)
from fastinfogan import LatentSpec
from fastinfogan.capture import WARM_UP, CudaGraph
from fastinfogan.config import PRESETS
from fastinfogan.ops import head_loss, image_batch, pack_codes, sample_latents, unpack_codes
from fastinfogan.ops.backend import available
from fastinfogan.precision import choose_device

SPECS = {"mnist": "mnist", "celeba": "celeba", "chairs": "chairs-rotation"}  # name in the table -> preset
BATCHES = (64, 128, 512, 4096)
# Backend -> op -> what ``--static`` calls the kernel that does as much
COMPILED = {
    "triton": {
        "head_loss": "head_loss G", "sample_latents": "sample_latents", "image_batch": "image_batch mirrored",
        "pack_codes": "pack_codes",
    },
    "native": {"pack_codes": "pack_kernel"},
}  # fmt: skip

CAPTURED_CALLS = 500  # in one launch of a GPU, so that it is long beside the launch

Run = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Measure every fused op with every backend that runs on the device."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    turns: int = 15
    """Turns that each backend takes; a turn is long enough to be timed well."""
    quick: bool = False
    """Batch 128 of the MNIST codes and five turns: to see that it runs, not to quote."""
    static: bool = False
    """Instead, what the GPU kernels compile to: registers, spills, launches, widths, bytes; needs no GPU."""
    out: Path | None = None
    """The CSV to write, with a picture beside it; bench/results/kernels.csv, or build/quick/ instead with --quick."""


@dataclass(frozen=True)
class Case:
    """call(backend): the public op once; plain(function): its reference once; floor_bytes: the least traffic."""

    op: str
    call: Callable[[str], object]
    plain: Callable[[Callable[..., object]], object]
    floor_bytes: int


def cases(spec: LatentSpec, image: tuple[int, int, int], batch: int, device: torch.device) -> list[Case]:
    """One case per op, on inputs that already lie on the device."""
    seed, step = (torch.tensor(value, device=device) for value in (1, 2))
    latents = sample_latents(spec, batch, seed=seed, step=step, device=device, backend="reference")
    logits = torch.randn(batch, spec.head_dim + 1, device=device)
    fake, recognition = logits[:, 0].contiguous(), logits[:, 1:].contiguous()
    weights = torch.ones(len(spec.names), device=device)
    channels, height, width = image
    store = torch.randint(0, 256, (max(1000, batch), height, width, channels), dtype=torch.uint8, device=device)
    index = torch.randperm(len(store), device=device)[:batch]
    noise, categories, continuous = (part.contiguous() for part in unpack_codes(spec, latents.z))
    targets = 8 * categories.numel() + 4 * continuous.numel()
    codes = spec.categorical, [prior == "normal" for prior in spec.continuous]
    return [
        Case(
            "head_loss",
            lambda backend: head_loss(
                spec, fake, recognition=recognition, categories=categories, continuous=continuous,
                code_weights=weights, backend=backend,
            ),
            lambda run: run(
                fake, None, recognition, categories, continuous, weights, None, spec.categorical, spec.entropies,
                False, False,
            ),
            2 * 4 * logits.numel() + targets,
        ),
        Case(
            "sample_latents",
            lambda backend: sample_latents(spec, batch, seed=seed, step=step, device=device, backend=backend),
            lambda run: run(seed, step, batch, spec.noise, False, *codes, 0, 0, torch.float32),
            4 * latents.z.numel() + targets,
        ),
        Case(
            "image_batch",
            lambda backend: image_batch(
                store, index, low=0.0, high=1.0, flip_seed=seed, step=step, backend=backend
            ),
            lambda run: run(store, index, 0.0, 1.0, seed, step, 0, torch.float32),
            5 * batch * channels * height * width + 8 * batch,
        ),
        Case(
            "pack_codes",
            lambda backend: pack_codes(spec, noise, categories, continuous, backend=backend),
            lambda run: run(noise, categories, continuous, spec.categorical, torch.float32),
            4 * latents.z.numel() + 4 * noise.numel() + targets,
        ),
    ]  # fmt: skip


def contestants(case: Case, device: torch.device) -> dict[str, Run]:
    """Name -> one call: every fused backend through the public op, the reference function bare, eager and compiled."""
    reference = import_module(f"fastinfogan.ops.{case.op}")._reference
    torch.compiler.reset()  # or the ninth case would meet the limit of recompilations and run eagerly
    compiled = torch.compile(reference, dynamic=False)
    runs: dict[str, Run] = {
        backend: lambda backend=backend: case.call(backend)  # type: ignore[misc]
        for backend in available(device.type, native_on_cuda=case.op == "pack_codes")
        if backend != "reference"
    }
    return {**runs, "torch.compile": lambda: case.plain(compiled), "reference": lambda: case.plain(reference)}


def main() -> None:
    """Print one row per op, codes, batch and backend, and write them as CSV."""
    options = tyro.cli(Options, prog="python -m bench kernels", description=__doc__)
    if options.static:
        from bench import static_report  # it needs triton and the test support

        static_report.main()
        return
    require_turns("--turns", options.turns)
    device = choose_device(options.device)
    out = results_file("kernels", options.quick, options.out)
    machine = announce(device, "triton")
    print(f"{'op':<15}{'codes':<8}{'batch':>6}  {'backend':<20}{'us/call':>10}{'x reference':>13}   floor, bytes")
    rows: list[dict[str, object]] = []
    for name, preset in list(SPECS.items())[: 1 if options.quick else None]:
        config = PRESETS[preset]
        for batch in (128,) if options.quick else BATCHES:
            for case in cases(config.spec, config.network_tables.image, batch, device):
                rows += measure(case, name, batch, 5 if options.quick else options.turns, device, machine)
    write_csv(out, rows)
    if device.type == "cuda" and out == results_file("kernels", False, None):
        fill_in(RESULTS, rows)
    plots.save(plots.kernels(rows), out)


def fill_in(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Put the times of ``rows``, measured on a GPU, beside the model's estimates for it in ``folder``."""
    for row in rows:
        provider, op = str(row["provider"]), str(row["op"])
        identity = {"preset": str(row["codes"]), "batch": str(row["batch"]), "dtype": "float32"}
        name = COMPILED.get(provider, {}).get(op)
        if name is not None:
            file = folder / ("kernels_static.csv" if provider == "triton" else "cuda_static.csv")
            put_beside_model(file, {"measured_us": str(row["median"])}, identity | {"kernel": name}, str(row["device"]))


def together(run: Run, times: int, device: torch.device) -> Run:
    """``times`` calls as one. On a GPU they are a graph, as in training: else the host's dispatch would be timed, which
    takes longer than the kernels."""
    if device.type != "cuda":
        return repeated(run, times)
    graph = CudaGraph(device)
    graph.warm_up(repeated(run, WARM_UP))  # compiles
    graph.record(repeated(run, times))
    return graph.replay


def measure(
    case: Case, codes: str, batch: int, turns: int, device: torch.device, machine: dict[str, str]
) -> list[dict[str, object]]:
    """The rows of one case, printed as they come."""
    runs = contestants(case, device)
    times = CAPTURED_CALLS if device.type == "cuda" else max(1, 20_000 // (100 + batch))
    seconds = in_turns({name: together(run, times, device) for name, run in runs.items()}, turns, device)
    rows: list[dict[str, object]] = []
    for backend, values in seconds.items():
        took = quantiles(values / times * 1e6)
        ratio = quantiles(seconds["reference"] / values)
        print(
            f"{case.op:<15}{codes:<8}{batch:>6}  {backend:<20}{took['median']:>10.1f}{ratio['median']:>12.2f}x"
            f"   {case.floor_bytes:,}"
        )
        rows.append(
            {
                "op": case.op,
                "codes": codes,
                "batch": batch,
                "provider": backend,
                "unit": "us",
                **{key: significant(value) for key, value in took.items()},
                "times_reference": significant(ratio["median"]),
                "floor_bytes": case.floor_bytes,
                **machine,
            }
        )
    return rows
