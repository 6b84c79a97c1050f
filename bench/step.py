"""One training iteration: images per second, time by phase and peak memory, against a popular-style trainer.

The contestants, each in a process of its own (``bench/apart.py``), take turns, all on the same images, which lie on the
device, and are compared by the median of the ratios turn by turn. Phases are timed in turns of their own, iteration by
iteration; memory in fresh processes. The floor (``bench/floor.py``) is the arithmetic and the traffic that an iteration
cannot do without, at the best rates that plain products and copies have reached in the same run: in fp32 and in the low
precision that ``--amp`` picks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import tyro

from bench import floor, plots
from bench.apart import Apart, Timed
from bench.field import IMAGES, TABLES, field, format_name
from bench.measure import (
    announce,
    has,
    in_turns,
    keep_rows,
    quantiles,
    read_csv,
    require_turns,
    results_file,
    significant,
)
from bench.memory import peak_mib
from bench.stopwatch import PHASES
from fastinfogan.config import PRESETS
from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device, choose_precision


@dataclass(frozen=True)
class Options:
    """Measure one training iteration of each preset."""

    presets: tuple[str, ...] = tuple(TABLES)
    """Any of mnist, celeba, celeba-64, svhn, faces, chairs, dsprites: the paper's objective on that table. quick-start
    is what `make train` does, beside the opponents' and the floor of the paper's objective on mnist."""
    batches: tuple[int, ...] = (32, 128, 512, 1024)
    """Images per iteration."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    turns: int = 9
    """Turns that each contestant takes: five iterations each, fewer of a batch above 128."""
    memory: bool = True
    """Measure the peak memory too: one more process per row."""
    quick: bool = False
    """MNIST at batch 32, three turns, no compilation: to see that it runs, not to quote."""
    static: bool = False
    """Instead, what an iteration launches and must move, per preset and GPU; needs no GPU."""
    out: Path | None = None
    """The CSV to write, with a picture beside it; bench/results/step.csv, or build/quick/ instead with --quick."""


@dataclass(frozen=True)
class Rates:
    """What the machine reached: FLOP/s of products by format, bytes read and written a second by a copy."""

    products: dict[str, float]
    copies: float


def rates(device: torch.device, before: Rates) -> Rates:
    """The best of what is measured now and ``before``: where others share the machine, one moment may be a slow one."""
    dtypes = {torch.float32, choose_precision(device, amp=True).dtype}
    measured = {format_name(dtype): floor.matmul_rate(device, dtype) for dtype in dtypes}
    products = {name: max(rate, before.products.get(name, 0.0)) for name, rate in measured.items()}
    return Rates(products, max(floor.copy_rate(device), before.copies))


def main() -> None:
    """Print a row per preset, batch and contestant; write them as CSV with a picture."""
    if "--static" in sys.argv[1:]:  # its flags are its own
        import_module("bench.iteration_report").main([flag for flag in sys.argv[1:] if flag != "--static"])
        return
    options = tyro.cli(Options, prog="python -m bench step", description=__doc__)
    if unknown := [preset for preset in options.presets if preset not in TABLES]:
        raise UserError(f"--presets takes any of {', '.join(TABLES)}, got {unknown[0]!r}")
    if not options.batches or not all(2 <= batch <= IMAGES for batch in options.batches):
        raise UserError(f"--batches takes numbers from 2 to {IMAGES:,}, got {' '.join(map(str, options.batches))}")
    require_turns("--turns", options.turns)
    device = choose_device(options.device)
    out = results_file("step", options.quick, options.out)
    machine = announce(device)
    reached = Rates({}, 0.0)
    here = {key: machine[key] for key in ("device", "cpu", "cores")}
    for preset in ("mnist",) if options.quick else options.presets:
        for batch in (32,) if options.quick else options.batches:
            reached = rates(device, reached)
            products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in reached.products.items())
            print(f"products {products}; copies {reached.copies / 1e9:.1f} GB/s read and written")
            rows = [row | machine for row in measure(preset, batch, device, options, reached)]
            keep_rows(out, rows, {"preset": preset, "batch": str(batch), **here})
            if device.type == "cuda" and out == results_file("step", False, None):
                report = import_module("bench.iteration_report")
                report.fill_in(report.STATIC, rows)
    plots.save(plots.step(in_order([row for row in read_csv(out) if has(row, here)])), out)


def in_order(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """``rows`` by preset and batch, in whatever order they were measured."""
    return sorted(rows, key=lambda row: (list(TABLES).index(row["preset"]), int(row["batch"])))


def measure(preset: str, batch: int, device: torch.device, options: Options, reached: Rates) -> list[dict[str, str]]:
    """The rows of one preset and batch, printed as they are known."""
    turns = 3 if options.quick else options.turns
    times = 1 if options.quick else max(1, min(5, 640 // batch))
    with ExitStack() as processes:
        contestants: dict[str, Timed] = {}
        for name in field(preset, batch, device):
            if options.quick and "tuned" in name:
                continue
            one = processes.enter_context(Apart(preset, batch, name, device))
            if one.takes_part():  # waits until it has warmed up: cuDNN's trials need the GPU to themselves
                contestants[name] = one
        runs = {name: functools.partial(one.turn, times) for name, one in contestants.items()}
        seconds = in_turns(runs, turns, device)
        phases = by_phase(contestants, times * max(3, turns // 3))
    rows: list[dict[str, str]] = []
    for name, values in seconds.items():
        took = quantiles(values / times)
        precision = name.split()[-1]
        config = PRESETS[TABLES[preset]]
        work = floor.iteration(config.network_tables, config.spec, batch, 4 if precision == "fp32" else 2)
        least = work.seconds(reached.products[precision], reached.copies)
        ratio = quantiles(seconds["eager fp32"] / values)["median"]
        peak = peak_mib(preset, batch, name, device) if options.memory else None
        print(
            f"{preset:<12}batch {batch:<5}{name:<26}{batch / took['median']:>8,.0f} images/s  "
            f"{took['median'] * 1e3:>7.1f} ms  floor {least * 1e3:.1f} ms  {ratio:.2f}x eager  "
            + "  ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in phases.get(name, {}).items())
            + (f"  peak {peak:,.0f} MiB" if peak is not None else "")
        )
        rows.append(
            {
                "preset": preset, "batch": str(batch), "provider": name, "unit": "ms",
                **{key: significant(value * 1e3) for key, value in took.items()},
                "images_per_second": significant(batch / took["median"]),
                "times_eager": significant(ratio),
                **{f"{phase}_ms": significant(phases[name][phase] * 1e3) if name in phases else "" for phase in PHASES},
                "peak_mib": "not measured" if peak is None else significant(peak),
                "gflop": significant(work.flops / 1e9),
                "gbyte": significant(work.bytes / 1e9),
                "product_gflops": significant(reached.products[precision] / 1e9),
                "copy_gbs": significant(reached.copies / 1e9),
                "floor_ms": significant(least * 1e3),
                "times_floor": significant(took["median"] / least),
            }
        )  # fmt: skip
    return rows


def by_phase(contestants: Mapping[str, Timed], iterations: int) -> dict[str, dict[str, float]]:
    """Median seconds of each phase of each contestant that has any; they take turns of one iteration."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name, one in contestants.items() if one.has_phases()}
    for _ in range(iterations):
        for name, readings in found.items():
            readings.append(contestants[name].phases())
    return {
        name: {phase: float(np.median([one[phase] for one in readings])) for phase in PHASES}
        for name, readings in found.items()
    }
