"""fastinfogan's own trainer as a contestant: how it is opened, moved on and judged stands here alone."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.stopwatch import Stopwatch
from fastinfogan.config import TrainConfig
from fastinfogan.data import BatchPlan, Decoded, open_batches
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.precision import Precision
from fastinfogan.trainer import Trainer


class NoRun:
    """Stands in for a run's folder: nothing is written while an iteration is timed."""

    path = Path()


class Ours:
    """fastinfogan's trainer on ``images``."""

    def __init__(self, config: TrainConfig, images: Decoded, precision: Precision) -> None:
        self.trainer = open_trainer(config, images, precision)

    def advance(self) -> None:
        trainer = self.trainer
        trainer.iteration(trainer.step)
        trainer.step += 1

    @property
    def captured(self) -> bool:
        """Whether an iteration is one launch, or will be."""
        return self.trainer._run.graph is not None

    @property
    def capture_refused(self) -> bool:
        """Whether the iterations were to be captured, and run op by op."""
        return self.trainer.graph is not None and not self.captured

    def networks(self) -> tuple[Generator, Discriminator]:
        return self.trainer.generator, self.trainer.discriminator

    def watch(self, stopwatch: Stopwatch) -> None:
        trainer = self.trainer
        for owner, name, phase in (
            (trainer.batches, "prepare", "data_latents"),
            (trainer.batches, "images", "data_latents"),
            (trainer, "draw", "data_latents"),
            (trainer.generator, "forward", "g_forward"),
            (trainer.discriminator_phase, "update", "d_phase"),
            (trainer.generator_phase, "update", "g_phase"),
        ):
            stopwatch.watch(owner, name, phase)


def open_trainer(config: TrainConfig, images: Decoded, precision: Precision) -> Trainer:
    """A trainer on ``images``, batched as the training command batches them, with cuDNN's trials as it has them."""
    torch.backends.cudnn.benchmark = True
    tables = config.network_tables
    plan = BatchPlan(config.batch, config.seed, *tables.image_range, flip=config.flip, device=precision.device)
    batches = open_batches(images, plan, image=tables.image, placement=config.placement)
    return Trainer(config, batches, NoRun(), precision)  # type: ignore[arg-type]
