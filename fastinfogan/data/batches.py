"""What the trainer consumes: the batch of a step, as a pure function of the step.

The order of an epoch is one Philox permutation of the whole set, and step s takes the s-th slice of it, of which each
rank takes its rows. So nothing about the data needs saving for an exact resume, and a run sees the same images
whether it is split over one rank or eight.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from fastinfogan import ops
from fastinfogan.data.decode import Decoder, decode_all
from fastinfogan.data.split import Decoded, Encoded, Image
from fastinfogan.errors import UserError
from fastinfogan.ops.philox import epoch_order

Placement = Literal["auto", "resident", "stream"]
RESIDENT_SHARE = 0.25  # of the free memory: networks, optimiser and CUDA graphs need the rest


@dataclass
class Order:
    """Which images the rows of a rank's batches are, for every step; the permutation of the last epoch is kept."""

    n: int
    batch: int
    seed: int
    device: torch.device
    rank: int = 0
    world: int = 1
    _epochs: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_whole_batch(self.n, self.batch, self.world)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the images left over come first or last in another epoch's order."""
        return self.n // (self.batch * self.world)

    def rows(self, step: int) -> torch.Tensor:
        """Indices of the images of ``step``: int64 [batch] on the device."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs = {epoch: epoch_order(self.n, seed=self.seed, epoch=epoch, device=self.device)}
        first = (within * self.world + self.rank) * self.batch
        return self._epochs[epoch][first : first + self.batch]


def require_whole_batch(n: int, batch: int, world: int = 1) -> None:
    """Raise a UserError unless ``n`` images fill the batches of ``world`` ranks at least once."""
    if n < batch * world:
        raise UserError(
            f"a batch of {batch * world:,} is larger than the set of {n:,} images: "
            f"choose --batch {max(1, n // world)} or less"
        )


class ResidentBatches:
    """Batches out of a decoded set that lies on the device as uint8; one gather per batch, nothing waits.

    ``low`` and ``high`` are what bytes 0 and 255 become; ``flip`` mirrors half of the images, drawn anew per step.
    Raises :class:`UserError` when the global batch is larger than the set.
    """

    def __init__(
        self,
        decoded: Decoded,
        *,
        batch: int,
        seed: int,
        low: float,
        high: float,
        flip: bool,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        device = torch.device(device)
        self.order = Order(len(decoded), batch, seed, device, rank, world)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.pixels = decoded.pixels.to(device)
        self.low, self.high, self.dtype = low, high, dtype
        self.flip_seed = seed if flip else None

    def at(self, step: int) -> torch.Tensor:
        """The images of ``step``: ``dtype`` [batch, C, H, W], channels last, on the device."""
        return ops.image_batch(
            self.pixels,
            self.order.rows(step),
            low=self.low,
            high=self.high,
            flip_seed=self.flip_seed,
            step=step,
            row_offset=self.order.rank * self.order.batch,
            dtype=self.dtype,
        )

    def close(self) -> None:
        """Nothing is held open."""


class StreamBatches:
    """Batches decoded by DALI while the device works on the one before, for sets too large to be resident.

    The same images, order and flips as :class:`ResidentBatches`; a file that cannot be decoded is replaced by the
    next one of the set. Steps asked for in sequence are prefetched, any other step costs the building of a pipeline.
    Raises :class:`UserError` when the batch is larger than the set or more than ``reject_limit`` of it is damaged.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        image: Image,
        batch: int,
        seed: int,
        low: float,
        high: float,
        flip: bool,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world: int = 1,
        reject_limit: float = 0.01,
    ) -> None:
        device = torch.device(device)
        self.order = Order(len(encoded), batch, seed, torch.device("cpu"), rank, world)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.low, self.high, self.dtype = low, high, dtype
        self.flip_seed = seed if flip else None
        self.every_row = torch.arange(batch, device=device)
        self.decoder = Decoder(
            encoded, image, device=device, batch=batch, plan=self.order.rows, reject_limit=reject_limit
        )

    def at(self, step: int) -> torch.Tensor:
        """The images of ``step``: ``dtype`` [batch, C, H, W], channels last, on the device."""
        return ops.image_batch(
            self.decoder.at(step),
            self.every_row,
            low=self.low,
            high=self.high,
            flip_seed=self.flip_seed,
            step=step,
            row_offset=self.order.rank * self.order.batch,
            dtype=self.dtype,
        )

    def close(self) -> None:
        """Stop decoding ahead and give DALI's threads and buffers back."""
        self.decoder.close()


def open_batches(
    split: Decoded | Encoded,
    *,
    image: Image,
    batch: int,
    seed: int,
    low: float,
    high: float,
    flip: bool,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world: int = 1,
    placement: Placement = "auto",
    reject_limit: float = 0.01,
    progress: bool = True,
) -> ResidentBatches | StreamBatches:
    """Batches of ``split``, resident on ``device`` or streamed to it.

    ``auto`` keeps the set resident when its uint8 pixels take at most a quarter of the device's free memory. A set
    of files is decoded once for that and kept beside the data, see :func:`fastinfogan.data.decode.decode_all`.
    """
    device = torch.device(device)
    channels, height, width = image
    resident = placement == "resident" or (
        placement == "auto" and len(split) * height * width * channels <= RESIDENT_SHARE * free_bytes(device)
    )
    if isinstance(split, Encoded):
        require_whole_batch(len(split), batch, world)  # before the set is decoded
        if not resident:
            return StreamBatches(
                split,
                image=image,
                batch=batch,
                seed=seed,
                low=low,
                high=high,
                flip=flip,
                device=device,
                dtype=dtype,
                rank=rank,
                world=world,
                reject_limit=reject_limit,
            )
        split = decode_all(split, image, device, reject_limit=reject_limit, progress=progress)
    elif placement == "stream":
        raise UserError(f"{split.name} is published decoded and cannot be streamed: choose --placement resident")
    return ResidentBatches(
        split,
        batch=batch,
        seed=seed,
        low=low,
        high=high,
        flip=flip,
        device=device,
        dtype=dtype,
        rank=rank,
        world=world,
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of ``device`` in bytes: the GPU's own, or what the host can give without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
