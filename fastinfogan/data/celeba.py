"""CelebA's two text files: forty attributes of each image, and which split it belongs to.

Both come from outside, and a line that is lost would give an image the wrong attributes or the wrong split; so every
line is checked, and the one at fault is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch

from fastinfogan.data.split import FactorKind, Factors, Split
from fastinfogan.errors import UserError

ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
FIRST_TEST_IMAGE = 182_638  # of the published partition


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
        in_test = [stem.isdigit() and int(stem) >= FIRST_TEST_IMAGE for stem in stems]
    return [name for name, tested in zip(names, in_test, strict=True) if tested == (split == "test")]


_MARKS = frozenset({"-1", "1"})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file: download it again") from None
