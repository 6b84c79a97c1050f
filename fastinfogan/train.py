"""``python -m fastinfogan.train``: train an InfoGAN on a data set by name, or on a folder of images.

Several GPUs, or several processes on a CPU, share a run under torchrun, with the same curve at the same ``--batch``,
which is the global one:

    torchrun --nproc-per-node 4 -m fastinfogan.train --dataset celeba --run-dir runs/celeba
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-id NAME ...

All machines must see the data and the run's folder under the same paths. SIGINT or SIGTERM to torchrun saves once and
ends; ``--resume`` goes on with any number of processes that divides the batch. When a process dies, the others
end with the checkpoint to go on from; with ``torchrun --max-restarts N`` they are all started again and go on from it
by themselves, up to N times, for which the command must say ``--run-dir`` (or ``--resume``), and on several machines
``--rdzv-id``, by which a start on another one knows the run for its own. After the loss of a machine ``--nnodes 1:2``
lets those that are left go on alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from fastinfogan import capture, checkpoint, data, distributed, figures, run_directory
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.commands import run_command
from fastinfogan.config import PRESETS, TrainConfig, preset, read_config
from fastinfogan.distributed import Ranks
from fastinfogan.errors import UserError
from fastinfogan.metrics.evaluation import evaluate
from fastinfogan.ops import selfcheck
from fastinfogan.precision import Precision, choose_precision
from fastinfogan.run_directory import RunDirectory
from fastinfogan.trainer import Stopped, Trainer

LEASE_SECONDS = 120  # after which a network file system gives up the lock of a machine that is gone


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
    resume = start.resume
    if resume and distributed.restarts() and not resume.exists():
        resume = checkpoint.run_of(resume)  # it has saved since then, and keeps its last checkpoints alone
    saved = checkpoint.load(resume) if resume else None
    if saved:
        base = dataclasses.replace(saved.config, run_dir=None)
    elif start.config:
        base = dataclasses.replace(read_config(start.config), run_dir=None)
    else:
        base = preset(start.preset or dataset or "mnist")
    command = tyro.cli(
        Train,
        prog="python -m fastinfogan.train",
        description=(
            f"Train an InfoGAN. Presets: {', '.join(PRESETS)}. With a preset or a data set before --help the defaults "
            f"below are its own. Several processes: torchrun --nproc-per-node N -m fastinfogan.train, the same flags."
        ),
        default=Train(Start(), base),
        args=arguments,
    )
    command.train.check()
    if not saved:
        return command.train, None
    folder = command.train.run_dir
    if folder and folder.resolve() != saved.run_dir.resolve():
        raise UserError(
            f"--resume goes on in the run's own folder {saved.run_dir}, not in --run-dir {folder}: leave --run-dir "
            f"out, or copy the checkpoint into {folder} and resume from there"
        )
    return dataclasses.replace(command.train, run_dir=saved.config.run_dir), resume


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
    config, resumed = parse(sys.argv[1:])
    with distributed.joined(config.device) as (ranks, device):
        precision = choose_precision(device, config.amp)
        stopped = _train(config, _to_go_on_from(config, resumed), ranks, precision)
    if stopped.signal is not None:
        raise SystemExit(128 + stopped.signal)


def _to_go_on_from(config: TrainConfig, resumed: Path | None) -> Path | None:
    """``resumed``; after a restart by torchrun the run's folder, where the start before has saved a checkpoint."""
    if not distributed.restarts():
        return resumed
    folder = checkpoint.load(resumed).run_dir if resumed else config.run_dir
    if folder is None:
        raise UserError(
            "torchrun started this run again after a process had failed, and it has no folder to go on from: give "
            "--run-dir with --max-restarts"
        )
    return folder if run_directory.begun_by_this_launch(folder) and checkpoint.newest(folder) else resumed


def _train(config: TrainConfig, resumed: Path | None, ranks: Ranks, precision: Precision) -> Stopped:
    """The run, and what a completed one leaves; the first process speaks and writes for all."""
    began = time.perf_counter()
    say = print if ranks.first else _silent
    device, tables = precision.device, config.network_tables
    rows = ranks.share(config.batch, least=1 if config.sync_batch_norm else 2)
    selfcheck.trust(device)
    say(_opening(config, ranks, precision))
    torch.backends.cudnn.benchmark = True  # shapes never change, so its trials are over after the first iteration
    # Decided once: on a shared disk a machine may not see yet what another one has written.
    source = ranks.from_first(checkpoint.file_of(resumed) if resumed and ranks.first else None)
    saved = checkpoint.load(source) if source else None
    if saved:
        _require_resumable(saved, config)

    with ranks.in_turn():
        split = data.open_split(
            config.dataset, config.data, "train", tables.image, gray=config.gray, tables=config.tables
        )
    data.require_whole_batch(len(split), rows, ranks.world)
    with contextlib.ExitStack() as cleanup:
        # Each process that asks for a new folder gets one of its own.
        new = run_directory.new_folder(config) if ranks.first and not saved else Path()
        folder = ranks.from_first(saved.run_dir if saved else new)
        run = RunDirectory(
            folder, config, saved.step if saved else 0, newest=source if source != resumed else None,
            writes=ranks.first, wait=LEASE_SECONDS if distributed.restarts() else 0,
        )  # fmt: skip
        cleanup.callback(run.close)
        plan = data.BatchPlan(
            rows, config.seed, *tables.image_range, config.flip, device, rank=ranks.rank, world=ranks.world
        )
        batches = data.open_batches(
            split, plan, image=tables.image, placement=config.placement, reject_limit=config.reject_limit,
            progress=ranks.first,
        )  # fmt: skip
        cleanup.callback(batches.close)
        trainer = Trainer(config, batches, run, precision, ranks)
        cleanup.callback(trainer.close)
        if saved:
            trainer.restore(saved)
            say(f"resuming at step {saved.step} from {saved.path}")
            saved = None  # the trainer has copies
        run.begin()
        say(f"{len(split):,} images of {split.name}; writing to {run.path}")
        stopped = trainer.train()
        if stopped.signal is not None:
            rest = f"go on with: {_command(ranks)} --resume {run.path}"
            if stopped.step == config.iterations:
                rest = f"that was the last; judge it with: python -m fastinfogan.evaluate {run.path}"
            say(f"stopped and saved at step {stopped.step}; {rest}")
        elif ranks.first:
            say(f"saved at step {stopped.step}; now judging it, as python -m fastinfogan.evaluate {run.path} would")
            _finish(config, trainer, run)
            say(f"{time.perf_counter() - began:,.0f} s in all; look at {run.figures}/*-final.png")
    return stopped


def _opening(config: TrainConfig, ranks: Ranks, precision: Precision) -> str:
    """What trains, how, and why so."""
    crew = f"{ranks.world} processes, this one on " if ranks.world > 1 else ""
    obstacle = capture.obstacle(config.capture, precision)
    how = f"op by op ({obstacle})" if obstacle else "one captured graph per iteration"
    number_format = str(precision.dtype).removeprefix("torch.")
    return f"training on {crew}{_describe(precision.device)}, {how}, in {number_format}: {precision.reason}"


def _command(ranks: Ranks) -> str:
    if ranks.world == 1:
        return "python -m fastinfogan.train"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
    machines = f"--nnodes {ranks.world // here} " if here < ranks.world else ""  # and where to meet, as before
    return f"torchrun {machines}--nproc-per-node {here} -m fastinfogan.train"


def _silent(_: str) -> None:
    """What the other processes say."""


def _require_resumable(saved: Checkpoint, config: TrainConfig) -> None:
    """Raise a UserError where ``saved`` cannot go on as ``config``, before the run's config.json is written anew."""
    if saved.step >= config.iterations:
        raise UserError(
            f"{saved.path} has done its {saved.step} iterations: ask for more with --iterations, or judge it with "
            f"python -m fastinfogan.evaluate {saved.run_dir}"
        )
    if saved.config.invert != config.invert:
        was, now = (f"--{'' if inverted else 'no-'}invert" for inverted in (saved.config.invert, config.invert))
        raise UserError(f"{saved.path} was trained with {was} and cannot go on with {now}: drop the flag")
    checkpoint.require_networks(saved, config)


def _finish(config: TrainConfig, trainer: Trainer, run: RunDirectory) -> None:
    """What a completed run leaves: final figures, the curves, the evaluation."""
    trainer.draw_figures("final")
    figures.curves_figure(run.metrics, trainer.spec).savefig(run.figures / "curves.png", dpi=120)
    step, found = trainer.evaluations.last or (-1, None)
    if found is None or step != trainer.step:
        found = evaluate(config, *trainer.alone(), trainer.step)
    found.publish(run.path / "evaluation.json")


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads, no CUDA GPU in use)"


if __name__ == "__main__":
    run_command(main)
