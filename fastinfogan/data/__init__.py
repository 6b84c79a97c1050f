"""Images by the name of their set: opened here, batched in :mod:`fastinfogan.data.batches`.

A set is either small and published decoded, or a pile of compressed files; ``open_split`` says which, after it has
checked that the images fit the networks, so that a mistake is told before any training starts.
"""

from __future__ import annotations

from pathlib import Path

from fastinfogan.data.batches import ResidentBatches, StreamBatches, open_batches, require_whole_batch
from fastinfogan.data.files import open_celeba, open_folder, require_channels
from fastinfogan.data.mnist import open_fashion, open_mnist
from fastinfogan.data.split import Decoded, Encoded, Image, Rejected, Split
from fastinfogan.data.svhn import open_svhn
from fastinfogan.errors import UserError

FIXED = {"mnist": open_mnist, "fashion-mnist": open_fashion, "svhn": open_svhn}
FILES = {"celeba": open_celeba, "folder": open_folder}
DATASETS = (*FIXED, *FILES)

__all__ = [
    "DATASETS",
    "Decoded",
    "Encoded",
    "Rejected",
    "ResidentBatches",
    "Split",
    "StreamBatches",
    "open_batches",
    "open_split",
    "require_whole_batch",
]


def open_split(
    dataset: str, root: Path, split: Split, image: Image, *, gray: bool = False, tables: str = "chosen"
) -> Decoded | Encoded:
    """Open ``split`` of ``dataset`` below the folder ``root`` for networks that take ``image`` = (C, H, W).

    MNIST is fetched when absent. Image files are listed but not decoded; ``gray`` says that colour files may become
    one channel. ``tables`` is the networks' name for messages. Raises :class:`UserError` when the set is unknown,
    absent, damaged, or does not fit the networks.
    """
    if dataset not in DATASETS:
        raise UserError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
    channels, height, width = image
    if gray and channels != 1:
        raise UserError(
            f"--gray gives 1-channel images but the {tables} networks take {channels}: drop --gray, or choose "
            f"--tables mnist"
        )
    if dataset in FILES:
        if height != width:
            raise UserError(f"the {tables} networks take {height}x{width} images, expected a square for {dataset}")
        encoded = FILES[dataset](root, split)
        if channels == 1 and not gray:
            require_channels(encoded, tables)
        return encoded
    decoded = FIXED[dataset](root, split)
    _, own_height, own_width, own_channels = decoded.pixels.shape
    if (own_channels, own_height, own_width) != image:
        raise UserError(
            f"{dataset} holds {own_height}x{own_width}x{own_channels} images but the {tables} networks take "
            f"{height}x{width}x{channels}: choose --tables {'svhn' if dataset == 'svhn' else 'mnist'}"
        )
    return decoded
