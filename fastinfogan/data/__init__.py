"""Images by the name of their set: opened here, batched in :mod:`fastinfogan.data.batches`.

A set is either small and published decoded, or a pile of compressed files; ``open_split`` says which, after it has
checked that the images fit the networks, so that a mistake is told before any training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fastinfogan.data.batches import BatchPlan, ResidentBatches, StreamBatches, open_batches, require_whole_batch
from fastinfogan.data.celeba import open_celeba
from fastinfogan.data.dsprites import open_dsprites
from fastinfogan.data.folder import open_folder, require_channels
from fastinfogan.data.mnist import open_fashion, open_mnist
from fastinfogan.data.renders import open_chairs, open_faces
from fastinfogan.data.shards import open_shards
from fastinfogan.data.split import Decoded, Encoded, Factors, ImageShape, Rejected, Split
from fastinfogan.data.svhn import open_svhn
from fastinfogan.errors import UserError
from fastinfogan.networks import TABLES

# Published decoded, in two splits, with the classes that an evaluation compares categorical codes to.
FIXED = {"mnist": open_mnist, "fashion-mnist": open_fashion, "svhn": open_svhn}
OPENERS: Mapping[str, Callable[[Path, Split], Decoded | Encoded]] = {
    **FIXED,
    "celeba": open_celeba,
    "faces": open_faces,
    "chairs": open_chairs,
    "dsprites": open_dsprites,
    "folder": open_folder,
}
DATASETS = tuple(OPENERS)

__all__ = [
    "DATASETS",
    "BatchPlan",
    "Decoded",
    "Encoded",
    "Factors",
    "Rejected",
    "ResidentBatches",
    "Split",
    "StreamBatches",
    "open_batches",
    "open_split",
    "require_whole_batch",
]


def open_split(
    dataset: str,
    root: Path,
    split: Split,
    image: ImageShape,
    *,
    gray: bool = False,
    tables: str = "chosen",
    sharded: bool = True,
) -> Decoded | Encoded:
    """Open ``split`` of ``dataset`` below the folder ``root`` for networks that take ``image`` = (C, H, W).

    MNIST is fetched when absent; tar shards of the set are preferred where there are any, unless ``sharded`` is off.
    Image files are listed but not decoded; ``gray`` says that colour files may become one channel. ``tables`` is the
    networks' name for messages.
    Raises :class:`UserError` when the set is unknown, absent, damaged, or does not fit the networks.
    """
    if dataset not in DATASETS:
        raise UserError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
    channels, height, width = image
    if gray and channels != 1:
        raise UserError(
            f"--gray gives 1-channel images but the {tables} networks take {channels}: give --no-gray, or choose "
            f"--tables mnist"
        )
    if height != width:
        raise UserError(f"the {tables} networks take {height}x{width} images, expected a square for {dataset}")
    opened = (sharded and open_shards(dataset, root, split)) or OPENERS[dataset](root, split)
    if isinstance(opened, Encoded):
        if channels == 1 and not gray:
            require_channels(opened, tables)
        return opened
    _, own_height, own_width, own_channels = opened.pixels.shape
    own = (own_channels, own_height, own_width)
    if own != image:
        fitting = next((f"choose --tables {name}" for name in TABLES if TABLES[name].image == own), "no tables fit it")
        raise UserError(
            f"{dataset} holds {own_height}x{own_width}x{own_channels} images but the {tables} networks take "
            f"{height}x{width}x{channels}: {fitting}"
        )
    return opened
