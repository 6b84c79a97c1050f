"""Who takes part: what a contestant can do, and the popular-style reference and its tuned form as such.

``step`` times their iterations and ``speedrun`` lets them train: what is timed is what learns. fastinfogan's own
trainer is in ``bench/ours.py``, apart, so that the opponents' cold start need not import it.
"""

from __future__ import annotations

from typing import Protocol

import torch

from bench.reference import Reference
from bench.stopwatch import Stopwatch
from fastinfogan.config import TrainConfig
from fastinfogan.data import Decoded
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.precision import Precision


class Contestant(Protocol):
    """One that trains."""

    def advance(self) -> None:
        """One iteration; may return before the device is done."""

    def networks(self) -> tuple[Generator, Discriminator]:
        """The networks as they are now, to be judged."""

    def watch(self, stopwatch: Stopwatch) -> None:
        """Have the phases of the iterations to come timed."""


class Opponent:
    """The reference with the hyperparameters of ``config`` on ``images``, which it holds as floats on the device.

    The order is a new permutation every epoch, the last incomplete batch dropped, as a DataLoader with ``shuffle`` and
    ``drop_last`` would have it, but without its costs.
    """

    def __init__(self, config: TrainConfig, images: Decoded, precision: Precision, *, tuned: bool) -> None:
        torch.backends.cudnn.benchmark = True  # as fastinfogan has it
        tables, device = config.network_tables, precision.device
        low, high = tables.image_range
        floats = (images.pixels.float() * ((high - low) / 255) + low).permute(0, 3, 1, 2)
        self.floats = floats.contiguous().to(device)
        self.batch = config.batch
        self.random = torch.Generator().manual_seed(config.seed % 2**63)
        self.left: list[torch.Tensor] = []
        self.reference = Reference(
            tables,
            config.spec,
            device=device,
            autocast=None if precision.dtype == torch.float32 else precision.dtype,
            tuned=tuned,
            lr_d=config.lr_d,
            lr_g=config.lr_g,
            betas=(config.beta1, config.beta2),
            seed=config.seed,
        )

    def images(self) -> torch.Tensor:
        """The next batch, float ``[batch, c, h, w]``."""
        if not self.left:
            order = torch.randperm(len(self.floats), generator=self.random).to(self.floats.device)
            self.left = [rows for rows in order.split(self.batch) if len(rows) == self.batch]
        return self.floats[self.left.pop()]

    def advance(self) -> None:
        self.reference.step(self.images())

    def networks(self) -> tuple[Generator, Discriminator]:
        return self.reference.generator, self.reference.discriminator

    def watch(self, stopwatch: Stopwatch) -> None:
        for owner, name, phase in (
            (self, "images", "data_latents"),
            (self.reference, "latents", "data_latents"),
            (self.reference, "generate", "g_forward"),
            (self.reference, "discriminator_phase", "d_phase"),
            (self.reference, "generator_phase", "g_phase"),
        ):
            stopwatch.watch(owner, name, phase)
