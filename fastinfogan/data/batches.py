"""What the trainer consumes: the batch of a step, as a pure function of the step.

The order of an epoch is one Philox permutation of the whole set, and step s takes the s-th slice of it, of which each
rank takes its rows. So nothing about the data needs saving for an exact resume, and a run sees the same images
whether it is split over one rank or eight.

A batch is made in two parts, so that an iteration can be captured in a CUDA graph. ``prepare(step)`` is the host's: it
fills static buffers with what the step needs (the order of a new epoch, or a streamed batch's pixels). ``images(step)``
is the device's: it reads the step and those buffers there, so that the same launches serve every step.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastinfogan import ops
from fastinfogan.data.decode import Decoder, decode_all
from fastinfogan.data.split import Decoded, Encoded, ImageShape
from fastinfogan.errors import UserError
from fastinfogan.ops.philox import as_word64, epoch_order

Placement = Literal["auto", "resident", "stream"]
RESIDENT_SHARE = 0.25  # of the free memory: networks, optimiser and CUDA graphs need the rest


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a rank's batches hold and what becomes of their bytes.

    batch: rows of one rank; rank, world: which of how many ranks that share the global batch.
    seed: of the order and of the flips.
    low, high: what bytes 0 and 255 become: the range of the generator's output.
    flip: mirror half of the images, drawn anew per step.
    device: of the images.
    """

    batch: int
    seed: int
    low: float
    high: float
    flip: bool
    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first_row(self) -> int:
        """The global row of this rank's first one."""
        return self.rank * self.batch


class Order:
    """Which of ``n`` images the rows of a rank's batches are, for every step; holds the permutation of one epoch."""

    def __init__(self, n: int, plan: BatchPlan, device: torch.device) -> None:
        """Raises UserError: the global batch is larger than the set."""
        require_whole_batch(n, plan.batch, plan.world)
        self.plan = plan
        self.permutation = torch.empty(n, dtype=torch.int64, device=device)
        self.epoch: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the images left over come first or last in another epoch's order."""
        return len(self.permutation) // (self.plan.batch * self.plan.world)

    def prepare(self, step: int) -> None:
        """Put the permutation of the epoch of ``step`` where :meth:`rows` reads it; nothing waits."""
        epoch = step // self.steps_per_epoch
        if epoch != self.epoch:
            self.permutation.copy_(
                epoch_order(len(self.permutation), seed=self.plan.seed, epoch=epoch, device=self.permutation.device)
            )
            self.epoch = epoch

    def rows(self, step: torch.Tensor) -> torch.Tensor:
        """Indices of the images of ``step``, an int64 scalar in the epoch prepared last: int64 [batch]."""
        plan, steps = self.plan, self.steps_per_epoch
        whole = self.permutation[: steps * plan.world * plan.batch].view(steps, plan.world * plan.batch)
        mine = whole[:, plan.first_row : plan.first_row + plan.batch]
        return mine.index_select(0, (step % steps).view(1)).view(-1)

    def at(self, step: int) -> torch.Tensor:
        """Indices of the images of ``step``, in any epoch: int64 [batch]."""
        self.prepare(step)
        return self.rows(as_word64(step, self.permutation.device))


def require_whole_batch(n: int, batch: int, world: int = 1) -> None:
    """Raise a UserError unless ``n`` images fill the batches of ``world`` ranks at least once."""
    if n < batch * world:
        most = n // world * world
        remedy = f"choose --batch {most} or less" if most > 1 else "give it more images"
        raise UserError(f"a batch of {batch * world:,} is larger than the set of {n:,} images: {remedy}")


class _Batches:
    """What both kinds share: the order of the images, and their normalisation."""

    def __init__(self, n: int, plan: BatchPlan, order_device: torch.device) -> None:
        self.plan = plan
        self.order = Order(n, plan, order_device)
        self.flip_seed = as_word64(plan.seed, plan.device) if plan.flip else None

    def prepare(self, step: int) -> None:
        """The host's part of ``step``; nothing waits for the device."""
        raise NotImplementedError

    def images(self, step: torch.Tensor) -> torch.Tensor:
        """The images of the ``step`` prepared last: float32 [batch, C, H, W], channels last, on the device."""
        raise NotImplementedError

    def at(self, step: int) -> torch.Tensor:
        """The images of any ``step``."""
        self.prepare(step)
        return self.images(as_word64(step, self.plan.device))

    def _normalised(self, pixels: torch.Tensor, index: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        plan = self.plan
        return ops.image_batch(
            pixels,
            index,
            low=plan.low,
            high=plan.high,
            flip_seed=self.flip_seed,
            step=step,
            row_offset=plan.first_row,
        )


class ResidentBatches(_Batches):
    """Batches out of a decoded set that lies on the device as uint8; one gather per batch, nothing waits.

    The order is one of all files, and the next whole image stands for a lost one: so a stream of the same files gives
    the same batches, and a run may be resumed where less memory is free.
    Raises :class:`UserError` when the global batch is larger than the set.
    """

    def __init__(self, decoded: Decoded, plan: BatchPlan) -> None:
        n = len(decoded) + len(decoded.lost)
        super().__init__(n, plan, plan.device)
        self.pixels = decoded.pixels.to(plan.device)
        self.row_of: torch.Tensor | None = None
        if decoded.lost:
            is_lost = torch.zeros(n, dtype=torch.int64).index_fill_(0, torch.tensor(decoded.lost), 1)
            # The whole images before a file are as many as the row of the next whole one, past the last the first.
            self.row_of = ((torch.arange(n) - is_lost.cumsum(0) + is_lost) % len(decoded)).to(plan.device)

    def prepare(self, step: int) -> None:
        """Have the order of the epoch of ``step``."""
        self.order.prepare(step)

    def images(self, step: torch.Tensor) -> torch.Tensor:
        files = self.order.rows(step)
        return self._normalised(self.pixels, files if self.row_of is None else self.row_of.index_select(0, files), step)

    def static(self) -> tuple[torch.Tensor, ...]:
        """What :meth:`images` reads beside the step: the same memory at every step, for a captured graph's sake."""
        return self.pixels, self.order.permutation

    def close(self) -> None:
        """Nothing is held open."""


class StreamBatches(_Batches):
    """Batches decoded by DALI while the device works on the one before, for sets too large to be resident.

    The same images, order and flips as :class:`ResidentBatches`; a file that cannot be decoded is replaced by the
    next one of the set. Steps asked for in sequence are prefetched, any other step costs the building of a pipeline.
    Raises :class:`UserError` when the batch is larger than the set or more than ``reject_limit`` of it is damaged.
    """

    def __init__(self, encoded: Encoded, plan: BatchPlan, *, image: ImageShape, reject_limit: float = 0.01) -> None:
        super().__init__(len(encoded), plan, torch.device("cpu"))
        channels, height, width = image
        self.pixels = torch.empty((plan.batch, height, width, channels), dtype=torch.uint8, device=plan.device)
        self.every_row = torch.arange(plan.batch, device=plan.device)
        self.decoder = Decoder(
            encoded, image, device=plan.device, batch=plan.batch, plan=self.order.at, reject_limit=reject_limit
        )

    def prepare(self, step: int) -> None:
        """Put the decoded pixels of ``step`` into a buffer that stays where it is."""
        self.decoder.fill(self.pixels, step)

    def images(self, step: torch.Tensor) -> torch.Tensor:
        return self._normalised(self.pixels, self.every_row, step)

    def static(self) -> tuple[torch.Tensor, ...]:
        """What :meth:`images` reads beside the step: the same memory at every step, for a captured graph's sake."""
        return self.pixels, self.every_row

    def close(self) -> None:
        """Stop decoding ahead and give DALI's threads and buffers back."""
        self.decoder.close()


def open_batches(
    split: Decoded | Encoded,
    plan: BatchPlan,
    *,
    image: ImageShape,
    placement: Placement = "auto",
    reject_limit: float = 0.01,
    progress: bool = True,
) -> ResidentBatches | StreamBatches:
    """Batches of ``split``, resident on the plan's device or streamed to it.

    ``auto`` keeps a set of files resident when its uint8 pixels take at most a quarter of the device's free memory; it
    is decoded once for that and kept beside the data, see :func:`fastinfogan.data.decode.decode_all`. A set that is
    published decoded is always resident.
    """
    channels, height, width = image
    resident = placement == "resident" or (
        placement == "auto" and len(split) * height * width * channels <= RESIDENT_SHARE * free_bytes(plan.device)
    )
    if isinstance(split, Encoded):
        require_whole_batch(len(split), plan.batch, plan.world)  # before the set is decoded
        if not resident:
            return StreamBatches(split, plan, image=image, reject_limit=reject_limit)
        split = decode_all(split, image, plan.device, reject_limit=reject_limit, progress=progress)
    elif placement == "stream":
        raise UserError(f"{split.name} is published decoded and cannot be streamed: choose --placement resident")
    return ResidentBatches(split, plan)


def free_bytes(device: torch.device) -> int:
    """Free memory of ``device`` in bytes: the GPU's own, or what the host can give without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, StopIteration):  # Linux counts what its cache of files would give back
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
