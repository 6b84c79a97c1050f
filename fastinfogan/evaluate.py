"""``python -m fastinfogan.evaluate RUN``: what a trained run is worth, as one table and ``evaluation.json``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from fastinfogan import checkpoint
from fastinfogan.commands import run_command
from fastinfogan.errors import UserError
from fastinfogan.metrics.evaluation import ALL, QUICK, Group, evaluate
from fastinfogan.metrics.features import inception
from fastinfogan.ops import selfcheck
from fastinfogan.precision import choose_device


@dataclass(frozen=True)
class Evaluate:
    """Judge a run: mutual information per code in nats; on labelled sets, error, NMI and ARI of argmax Q(c|x).

    With --all or --groups also sample quality, disentanglement, traversals, strokes of digits and a linear probe.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder (its newest checkpoint is judged), or one checkpoint file."""
    groups: tuple[Group, ...] = QUICK
    """What to measure. samples and traversal train a small network on the real images first where they need one."""
    all: bool = False
    """Measure every group that the run's data set and codes can have."""
    inception: Path | None = None
    """Judge samples by FID's own Inception instead: inception-2015-12-05.pt, StyleGAN2-ADA's TorchScript file, which no
    package ships. 30,000 images take a CPU the better part of an hour."""
    data: Path | None = None
    """Where the data sets lie; without it, where the run found them."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""


def main() -> None:
    """The command."""
    command = tyro.cli(Evaluate, prog="python -m fastinfogan.evaluate")
    device = choose_device(command.device)
    groups = ALL if command.all else command.groups
    if not groups:
        raise UserError(f"--groups names what to measure, got nothing: choose of {' '.join(ALL)}, or leave it out")
    if command.inception is not None and "samples" not in groups:
        raise UserError(f"--inception {command.inception} judges samples: add --groups samples, or --all")
    features = None if command.inception is None else inception(command.inception, device)
    selfcheck.trust(device)
    saved, _, generator, discriminator = checkpoint.load_networks(command.run, device)
    config = saved.config if command.data is None else replace(saved.config, data=command.data)
    chosen = groups not in (ALL, QUICK)
    evaluation = evaluate(config, generator, discriminator, saved.step, groups, insist=chosen, features=features)
    path = saved.run_dir / "evaluation.json"
    evaluation.publish(path)
    print(f"written to {path}")


if __name__ == "__main__":
    run_command(main)
