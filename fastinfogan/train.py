"""``python -m fastinfogan.train``: train an InfoGAN on a data set by name, or on a folder of images."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from fastinfogan import checkpoint, data, figures, run_directory
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.commands import run_command
from fastinfogan.config import PRESETS, TrainConfig, preset, read_config
from fastinfogan.errors import UserError
from fastinfogan.metrics.evaluation import evaluate
from fastinfogan.networks import build
from fastinfogan.ops import selfcheck
from fastinfogan.precision import choose_device, choose_precision
from fastinfogan.run_directory import RunDirectory
from fastinfogan.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """Where the configuration starts from; flags then change single values."""

    preset: str | None = None
    """One of the paper's experiments or the quick start; without it the one named like --dataset."""
    config: Path | None = None
    """Repeat a run: its folder or its config.json."""
    resume: Path | None = None
    """Go on with a run from its newest checkpoint: its folder, or one checkpoint file in it."""


@dataclass(frozen=True)
class Train:
    """All flags."""

    start: Annotated[Start, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Start)
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)


def parse(arguments: list[str]) -> tuple[TrainConfig, Path | None]:
    """The resolved configuration, and what to resume from.

    Raises:
        UserError: an unknown preset or data set, an unreadable configuration, a value that cannot work.
    """
    start, dataset = _peek(arguments)
    if len(given := [name for name, value in vars(start).items() if value is not None]) > 1:
        raise UserError(f"--{' and --'.join(given)} each say where to start from: give one of them")
    if start.resume:
        base = checkpoint.load(start.resume).config
    elif start.config:
        base = dataclasses.replace(read_config(start.config), run_dir=None)
    else:
        base = preset(start.preset or dataset or "mnist")
    command = tyro.cli(
        Train,
        prog="python -m fastinfogan.train",
        description=f"Train an InfoGAN. Presets: {', '.join(PRESETS)}.",
        default=Train(Start(), base),
        args=arguments,
    )
    command.train.check()
    return command.train, start.resume


def _peek(arguments: list[str]) -> tuple[Start, str | None]:
    """The flags that decide the defaults of all others."""

    @dataclass(frozen=True)
    class First:
        start: Annotated[Start, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Start)
        dataset: str | None = None

    first, _ = tyro.cli(First, args=arguments, return_unknown_args=True, add_help=False)
    if first.dataset is not None and first.dataset not in data.DATASETS:
        preset(first.dataset)  # its error names the nearest
    return first.start, first.dataset


def main() -> None:
    """The command."""
    began = time.perf_counter()
    config, resumed = parse(sys.argv[1:])
    device = choose_device(config.device)
    precision = choose_precision(device, config.amp)
    print(f"training on {_describe(device)} in {str(precision.dtype).removeprefix('torch.')}: {precision.reason}")
    if warning := selfcheck.trust(device):
        print(warning, file=sys.stderr)
    saved = checkpoint.load(resumed) if resumed else None
    if saved:
        _require_resumable(saved, config)

    tables = config.network_tables
    split = data.open_split(config.dataset, config.data, "train", tables.image, gray=config.gray, tables=config.tables)
    data.require_whole_batch(len(split), config.batch)
    with contextlib.ExitStack() as cleanup:
        folder = saved.run_dir if saved else run_directory.new_folder(config)
        run = RunDirectory(folder, config, saved.step if saved else 0)
        cleanup.callback(run.close)
        batches = data.open_batches(
            split,
            image=tables.image,
            batch=config.batch,
            seed=config.seed,
            low=tables.image_range[0],
            high=tables.image_range[1],
            flip=config.flip,
            device=device,
            placement=config.placement,
            reject_limit=config.reject_limit,
        )
        cleanup.callback(batches.close)
        trainer = Trainer(config, batches, run, precision)
        if saved:
            trainer.restore(saved)
            print(f"resuming at step {saved.step} from {saved.path}")
        print(f"{len(split):,} images of {split.name}; writing to {run.path}")
        stopped = trainer.train()
        if stopped.signal is not None:
            print(
                f"stopped and saved at step {stopped.step}; go on with: python -m fastinfogan.train --resume {run.path}"
            )
            raise SystemExit(128 + stopped.signal)
        _finish(config, trainer, run)
        print(f"{time.perf_counter() - began:,.0f} s in all; look at {run.figures}/*-final.png")


def _require_resumable(saved: Checkpoint, config: TrainConfig) -> None:
    """Raise a UserError where ``saved`` cannot go on as ``config``, before the run's config.json is written anew."""
    if saved.step >= config.iterations:
        raise UserError(f"{saved.path} has done its {saved.step} iterations: ask for more with --iterations")
    networks = build(config.network_tables, config.spec, seed=0)
    for name, module in zip(("generator", "discriminator"), networks, strict=True):
        saved.require(name, module)


def _finish(config: TrainConfig, trainer: Trainer, run: RunDirectory) -> None:
    """What a completed run leaves: final figures, the curves, the evaluation."""
    trainer.draw_figures("final")
    figures.curves_figure(run.metrics, trainer.spec).savefig(run.figures / "curves.png", dpi=120)
    evaluation = evaluate(config, trainer.generator, trainer.discriminator, trainer.step)
    evaluation.write(run.path / "evaluation.json")
    print(evaluation.table())


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads, no CUDA GPU in use)"


if __name__ == "__main__":
    run_command(main)
