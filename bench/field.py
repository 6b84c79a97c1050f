"""All that take part in ``step``, on made-up images, and the tables of networks that they do so on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.contestants import Contestant, Opponent
from bench.ours import Ours
from fastinfogan.capture import Capture
from fastinfogan.config import PRESETS, TrainConfig
from fastinfogan.data import Decoded
from fastinfogan.precision import Precision, choose_precision

# Name in the table of results -> preset. With the paper's objective: the paper's tables, the deeper one of its family,
# and Lin et al.'s; what other presets of a table change (weights, rates, iterations) an iteration's time hardly knows
# of. The quick start has an objective of its own, its opponents the paper's, and so has the floor.
QUICK_START = "quick-start"
TABLES = {
    "mnist": "mnist-paper",
    "celeba": "celeba",
    "celeba-64": "celeba-64",
    "svhn": "svhn",
    "faces": "faces-azimuth",
    "chairs": "chairs-rotation",
    "dsprites": "dsprites",
    QUICK_START: "mnist",
}
IMAGES = 4096
CAPTURED, OP_BY_OP = "fastinfogan", "fastinfogan op by op"  # on a CPU both are the same, and the first stands alone


def field(preset: str, batch: int, device: torch.device, images: int = IMAGES) -> dict[str, Callable[[], Contestant]]:
    """Name -> how that contestant is made, for the official code's objective, so that all compute the same.

    preset: of TABLES; with the quick start, ours alone has that one's objective. images: how many there are to train
    on.
    """
    config = replace(PRESETS[TABLES[preset]], batch=batch)
    if preset != QUICK_START:
        config = replace(config, fixed_std=True)
    full = Precision(device, torch.float32, "the other half of the comparison")
    low = choose_precision(device, amp=True)

    def ours(precision: Precision, capture: Capture) -> Contestant:
        return Ours(replace(config, capture=capture), _random_images(config, images), precision)

    def opponent(precision: Precision, tuned: bool) -> Contestant:
        return Opponent(config, _random_images(config, images), precision, tuned=tuned)

    kinds: list[tuple[str, Capture]] = [(CAPTURED, "auto")]
    if device.type == "cuda":
        kinds.append((OP_BY_OP, "off"))
    return {
        **{
            f"{kind} {format_name(precision.dtype)}": functools.partial(ours, precision, capture)
            for kind, capture in kinds
            for precision in (full, low)
        },
        "eager fp32": functools.partial(opponent, full, False),
        f"tuned {format_name(low.dtype)}": functools.partial(opponent, low, True),
    }


def _random_images(config: TrainConfig, n: int) -> Decoded:
    channels, height, width = config.network_tables.image
    random = torch.Generator().manual_seed(0)
    return Decoded("random", torch.randint(256, (n, height, width, channels), generator=random, dtype=torch.uint8))


def format_name(dtype: torch.dtype) -> str:
    """``fp32``, ``bf16`` or ``fp16``."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
