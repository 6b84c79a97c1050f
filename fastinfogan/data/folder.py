"""A folder or archive of one's own images as a set, and what a pile of image files must fit."""

from __future__ import annotations

import io
from pathlib import Path

from fastinfogan.data.archives import encode, listing
from fastinfogan.data.header import Refused, require_decodable
from fastinfogan.data.split import Encoded, Split
from fastinfogan.errors import UserError

SNIFFED = 64


def open_folder(root: Path, split: Split) -> Encoded:
    """Every JPEG and PNG below the folder ``root``, or in the zip or tar ``root``, cropped to the largest square.

    Subfolders ``train`` and ``test`` are the splits where both exist; otherwise either split is all of the images.
    Raises :class:`UserError` when there is no image, or the archive is damaged.
    """
    names, source = listing(root)
    if {"train", "test"} <= {name.split("/", 1)[0] for name in names}:
        names = [name for name in names if name.startswith(f"{split}/")]
    home = root if root.is_dir() else root.parent
    return encode("folder", source, names, crop=None, home=home)


def require_channels(encoded: Encoded, tables: str) -> None:
    """Raise :class:`UserError` if one of the first files is in colour, for networks that take one channel."""
    from PIL import Image

    for index in range(min(SNIFFED, len(encoded))):
        try:
            require_decodable(content := encoded.read(index), encoded.names[index])
            picture = Image.open(io.BytesIO(content))
        except (OSError, ValueError, Refused):
            continue  # damaged files are the decoder's to report
        if Image.getmodebase(picture.mode) == "RGB":  # what a palette and CMYK come down to as well
            channels = max(3, len(picture.getbands()))
            raise UserError(
                f"expected 1-channel images for the {tables} networks, got {channels} channels in "
                f"{encoded.names[index]}: pass --gray, or choose --tables celeba"
            )
