"""One training iteration, images per second: fastinfogan against a popular-style eager trainer and its tuned form.

The contestants take turns, all on the same resident images, and are compared by the median of the ratios turn by turn.
The floor is the arithmetic alone: FLOPs of one of our iterations over the matmul rate that this machine reached in the
same run, in fp32 and in the low precision that ``--amp`` picks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import RESULTS, in_turns, machine_columns, quantiles, significant, write_csv
from bench.reference import Reference
from fastinfogan.config import PRESETS, TrainConfig
from fastinfogan.data import Decoded, ResidentBatches
from fastinfogan.precision import Precision, choose_device, choose_precision
from fastinfogan.trainer import Trainer

SPECS = {
    "mnist": "mnist-paper",
    "celeba": "celeba",
    "svhn": "svhn",
    "faces": "faces-azimuth",
    "chairs": "chairs-rotation",
}
IMAGES = 4096


@dataclass(frozen=True)
class Options:
    """Measure one training iteration of each preset."""

    presets: tuple[str, ...] = ("mnist", "celeba")
    """Any of mnist, celeba, svhn, faces, chairs: the paper's objective on that table."""
    batches: tuple[int, ...] = (128,)
    """Images per iteration."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    turns: int = 9
    """Turns of five iterations that each contestant takes."""
    quick: bool = False
    """MNIST, three turns, no compilation: to see that it runs, not to quote."""
    out: Path = RESULTS / "step.csv"
    """The CSV to write."""


class NoRun:
    """Stands in for a run's folder: nothing is written while an iteration is timed."""

    path = Path()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a 2048-cubed matrix product, the best of ten."""
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    seconds = in_turns({"matmul": lambda: a @ a}, 10, device)["matmul"]
    return 2 * 2048**3 / float(seconds.min())


def contestants(
    config: TrainConfig, device: torch.device, low: Precision, quick: bool
) -> dict[str, Callable[[], object]]:
    """Name -> one iteration."""
    tables = config.network_tables
    channels, height, width = tables.image
    pixels = torch.randint(0, 256, (IMAGES, height, width, channels), dtype=torch.uint8)
    images = Decoded("random", pixels)
    full = Precision(device, torch.float32, "the other half of the comparison")
    runs: dict[str, Callable[[], object]] = {}
    for name, precision in (("fastinfogan fp32", full), (f"fastinfogan {_name(low.dtype)}", low)):
        batches = ResidentBatches(
            images, batch=config.batch, seed=0, low=tables.image_range[0], high=tables.image_range[1], flip=False,
            device=device,
        )  # fmt: skip
        trainer = Trainer(config, batches, NoRun(), precision)  # type: ignore[arg-type]
        runs[name] = _next_step(trainer)
    low_value, high_value = tables.image_range
    floats = (pixels.float() / 255 * (high_value - low_value) + low_value).permute(0, 3, 1, 2).contiguous().to(device)

    def opponent(tuned: bool, autocast: torch.dtype | None) -> Callable[[], object]:
        reference = Reference(tables, config.spec, device=device, tuned=tuned, autocast=autocast)
        return lambda: reference.step(floats[torch.randint(0, IMAGES, (config.batch,), device=device)])

    runs["eager fp32"] = opponent(False, None)
    if not quick:
        runs["tuned fp32"] = opponent(True, None)
        runs[f"tuned {_name(low.dtype)}"] = opponent(True, low.dtype)
    return runs


def _next_step(trainer: Trainer) -> Callable[[], object]:
    def run() -> None:
        trainer.iteration(trainer.step)
        trainer.step += 1

    return run


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def main() -> None:
    """Print images per second of every contestant, preset by preset, and write them as CSV."""
    options = tyro.cli(Options, prog="python -m bench step", description=__doc__)
    device = choose_device(options.device)
    low = choose_precision(device, amp=True)
    machine = machine_columns(device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rates = {dtype: matmul_rate(device, dtype) for dtype in {torch.float32, low.dtype}}
    rows: list[dict[str, object]] = []
    for preset in ("mnist",) if options.quick else options.presets:
        for batch in options.batches:
            # The paper's objective, so that both sides compute the same.
            config = replace(PRESETS[SPECS[preset]], batch=batch, consistency=0.0, fixed_std=True)
            runs = contestants(config, device, low, options.quick)
            with FlopCounterMode(display=False) as counter:
                runs["fastinfogan fp32"]()
            flops = counter.get_total_flops()
            five = {name: (lambda run=run: [run() for _ in range(5)]) for name, run in runs.items()}
            seconds = in_turns(five, 3 if options.quick else options.turns, device)
            for name, values in seconds.items():
                took = quantiles(values / 5)
                dtype = torch.float32 if name.endswith("fp32") else low.dtype
                floor = flops / rates[dtype]
                ratio = quantiles(seconds["eager fp32"] / values)["median"]
                print(
                    f"{preset:<8}batch {batch:<5}{name:<18}{batch / took['median']:>8,.0f} images/s  "
                    f"{took['median'] * 1e3:>7.1f} ms  floor {floor * 1e3:.1f} ms  {ratio:.2f}x eager"
                )
                rows.append(
                    {
                        "preset": preset, "batch": batch, "provider": name, "unit": "ms",
                        **{key: significant(value * 1e3) for key, value in took.items()},
                        "images_per_second": significant(batch / took["median"]),
                        "times_eager": significant(ratio),
                        "gflop": significant(flops / 1e9),
                        "floor_ms": significant(floor * 1e3),
                        **machine,
                    }
                )  # fmt: skip
    write_csv(options.out, rows)


if __name__ == "__main__":
    main()
