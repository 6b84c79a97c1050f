"""Sets that are piles of image files: a folder of one's own, and CelebA, which is published as one."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

from fastinfogan.data import celeba
from fastinfogan.data.archives import encode, listing
from fastinfogan.data.factors import FILE, read_factors
from fastinfogan.data.header import Refused, require_decodable
from fastinfogan.data.split import Encoded, Factors, Split
from fastinfogan.errors import UserError

SNIFFED = 64

CELEBA_IMAGES = "img_align_celeba"
CELEBA_CROP = 148  # pixels of the 178 x 218 published: the face without most of the background


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


def open_celeba(root: Path, split: Split) -> Encoded:
    """CelebA, aligned and cropped: ``img_align_celeba`` as a folder or zip in ``<root>/celeba`` or ``root``.

    The splits are those of ``list_eval_partition.txt`` where it lies beside, else the published ones by image number;
    train includes the validation images, which nothing here uses otherwise. The centred 148 x 148 square is used.
    The factors are the attributes of ``list_attr_celeba.txt`` where it lies beside; of a rendered set of the same
    layout they are what it was drawn from. Raises :class:`UserError` when the set is absent or damaged, or the split
    has no image.
    """
    places = [folder / name for folder in (root / "celeba", root) for name in (CELEBA_IMAGES, f"{CELEBA_IMAGES}.zip")]
    path = next((p for p in places if p.exists()), None)
    if path is None:
        raise UserError(
            f"CelebA is absent: looked for {', '.join(str(p.absolute()) for p in places)}; download "
            f"Align&Cropped Images ({CELEBA_IMAGES}.zip) and {celeba.ATTRIBUTES} from the CelebA project page into "
            f"the first folder, or draw images of its layout with `python -m fastinfogan.data render celeba-like "
            f"--out {root / 'celeba'}`, or run `python -m fastinfogan.train --dataset mnist --amp` instead"
        )
    names, source = listing(path)
    chosen = celeba.of_split(names, split, path.parent / celeba.PARTITION)
    if not chosen:
        raise UserError(
            f"none of the {len(names):,} images in {path} is in CelebA's {split} split: put the whole set there, or "
            f"a {celeba.PARTITION} beside it"
        )
    factors = _celeba_factors(path.parent, chosen)
    return encode("celeba", source, chosen, crop=CELEBA_CROP, home=path.parent, factors=factors)


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


def _celeba_factors(folder: Path, names: list[str]) -> Factors | None:
    """What is known of the images ``names`` (``NNNNNN.jpg``, numbered from 1); exact values before attributes."""
    if (folder / FILE).is_file():
        factors = read_factors(folder / FILE)
        numbers = [int(stem) - 1 if (stem := PurePosixPath(name).stem).isdigit() else -1 for name in names]
        if not 0 <= min(numbers) <= max(numbers) < len(factors):
            raise UserError(
                f"{folder / FILE} describes {len(factors):,} images but not all of the {len(names):,} beside it: "
                f"render the set again, or delete {FILE}"
            )
        return factors.rows(numbers)
    attributes = folder / celeba.ATTRIBUTES
    return celeba.attribute_factors(attributes, names) if attributes.is_file() else None
