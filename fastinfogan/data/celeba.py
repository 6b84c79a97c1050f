"""CelebA: its images, and its two text files, forty attributes of each image and which split it belongs to.

Both files come from outside, and a line that is lost would give an image the wrong attributes or the wrong split; so
every line is checked, and the one at fault is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.data.archives import encode, listing
from fastinfogan.data.factors import FILE, read_factors
from fastinfogan.data.idx import raw
from fastinfogan.data.split import Encoded, FactorKind, Factors, Split
from fastinfogan.errors import UserError

IMAGES = "img_align_celeba"
CROP = 148  # pixels of the 178 x 218 published: the face without most of the background
ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
FIRST_TEST_IMAGE = 182_638  # of the published partition


def open_celeba(root: Path, split: Split) -> Encoded:
    """CelebA, aligned and cropped: ``img_align_celeba`` as a folder or zip in ``<root>/celeba`` or ``root``.

    The splits are those of ``list_eval_partition.txt`` where it lies beside, else the published ones by image number;
    train includes the validation images, which nothing here uses otherwise. The centred 148 x 148 square is used.
    The factors are the attributes of ``list_attr_celeba.txt`` where it lies beside; of a rendered set of the same
    layout they are what it was drawn from. Raises :class:`UserError` when the set is absent or damaged, or the split
    has no image.
    """
    places = [folder / name for folder in (root / "celeba", root) for name in (IMAGES, f"{IMAGES}.zip")]
    path = next((p for p in places if p.exists()), None)
    if path is None:
        raise UserError(
            f"CelebA is absent: looked for {', '.join(str(p.absolute()) for p in places)}; download "
            f"Align&Cropped Images ({IMAGES}.zip) and {ATTRIBUTES} from the CelebA project page into "
            f"the first folder, or draw images of its layout with `python -m fastinfogan.data render celeba-like "
            f"--out {root / 'celeba'}`, or run `python -m fastinfogan.train --dataset mnist --amp` instead"
        )
    names, source = listing(path)
    chosen = of_split(names, split, path.parent / PARTITION)
    if not chosen:
        raise UserError(
            f"none of the {len(names):,} images in {path} is in CelebA's {split} split: put the whole set there, or "
            f"a {PARTITION} beside it"
        )
    factors = _factors(path.parent, chosen)
    return encode("celeba", source, chosen, crop=CROP, home=path.parent, factors=factors)


def celeba_attributes(path: Path, names: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int8]]:
    """``list_attr_celeba.txt`` for the images ``names`` (folders in front are ignored).

    Returns the names of the 40 attributes and int8 [len(names), 40] of -1 and 1. Raises :class:`UserError` that names
    the line that is malformed, or the image that has none.
    """
    if not path.is_file():
        raise UserError(f"expected {path.absolute()}: download {ATTRIBUTES} from the CelebA project page")
    count, attributes, *lines = (line.split() for line in [*_lines(path), "", ""])
    values: dict[str, list[str]] = {}
    for number, (name, *marks) in ((n, line) for n, line in enumerate(lines, start=3) if line):
        if len(marks) != len(attributes) or not _MARKS.issuperset(marks):
            raise UserError(
                f"{path} line {number} ({name}) holds {len(marks)} values, expected {len(attributes)} of -1 or 1: "
                f"download it again"
            )
        values[name] = marks
    files = [PurePosixPath(name).name for name in names]
    if missing := [name for name in files if name not in values]:
        raise UserError(
            f"{path} describes {len(values):,} images but has no line for {missing[0]} ({len(missing):,} of "
            f"{len(files):,} lack one): download it again"
        )
    if count != [str(len(values))]:
        raise UserError(
            f"{path} says in line 1 that it describes {' '.join(count)[:20]!r} images but does so for "
            f"{len(values):,}: download it again"
        )
    return tuple(attributes), np.array([values[name] for name in files]).astype(np.int8)


def attribute_factors(path: Path, names: Sequence[str]) -> Factors:
    """The attributes of the images ``names`` as categorical factors: class 1 where the attribute is present."""
    attributes, marks = celeba_attributes(path, names)
    n = len(attributes)
    kinds: list[FactorKind] = ["categorical"] * n
    return Factors(attributes, tuple(kinds), torch.from_numpy((marks > 0).astype(np.float32)), (0.0,) * n, (1.0,) * n)


def of_split(names: Sequence[str], split: Split, partition: Path) -> list[str]:
    """Those of the images ``names`` that belong to ``split``: by the file ``partition`` where it exists.

    Without it by image number, as published. Train includes the validation images, which nothing here uses otherwise.
    Raises :class:`UserError` that names the line that is malformed, or the image that has none.
    """
    files = [PurePosixPath(name).name for name in names]
    if partition.is_file():
        parts: dict[str, str] = {}
        for number, line in enumerate((line.split() for line in _lines(partition)), start=1):
            if line and (len(line) != 2 or line[1] not in ("0", "1", "2")):
                raise UserError(
                    f"{partition} line {number} is {' '.join(line)[:60]!r}, expected an image and 0, 1 or 2: "
                    f"download it again"
                )
            if line:
                parts[line[0]] = line[1]
        if missing := [file for file in files if file not in parts]:
            raise UserError(
                f"{partition} has no line for {missing[0]} ({len(missing):,} of {len(files):,} lack one): "
                f"download it again"
            )
        in_test = [parts[file] == "2" for file in files]
    else:
        stems = [file.split(".")[0] for file in files]
        in_test = [_number(stem) >= FIRST_TEST_IMAGE for stem in stems]
    return [name for name, tested in zip(names, in_test, strict=True) if tested == (split == "test")]


def _number(stem: str) -> int:
    """The number that is an image's name; 0, which none has, for another name."""
    return int(stem) if stem.isdecimal() and len(stem) < 19 else 0


def _factors(folder: Path, names: list[str]) -> Factors | None:
    """What is known of the images ``names`` (``NNNNNN.jpg``, numbered from 1); exact values before attributes."""
    attributes = folder / ATTRIBUTES
    described = attribute_factors(attributes, names) if attributes.is_file() else None
    if (folder / FILE).is_file():
        factors = read_factors(folder / FILE)
        numbers = [_number(PurePosixPath(name).stem) - 1 for name in names]
        if not 0 <= min(numbers) <= max(numbers) < len(factors):
            raise UserError(
                f"{folder / FILE} describes {len(factors):,} images but not all of the {len(names):,} beside it: "
                f"render the set again, or delete {FILE}"
            )
        return factors.rows(numbers)
    return described


_MARKS = frozenset({"-1", "1"})


def _lines(path: Path) -> list[str]:
    try:
        return raw(path).decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file: download it again") from None
