"""Folders and zips of compressed images, and CelebA, which is published as one.

A zip is read in place: unpacking 202,599 files takes longer than decoding them. Listing a set reads names, sizes and
dates only, so opening one is quick; the pictures are read when their turn comes.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from fastinfogan.data.split import Encoded, Split
from fastinfogan.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
SNIFFED = 64

CELEBA_IMAGES = "img_align_celeba"
CELEBA_ATTRIBUTES = "list_attr_celeba.txt"
CELEBA_PARTITION = "list_eval_partition.txt"
CELEBA_CROP = 148  # pixels of the 178 x 218 published: the face without most of the background
CELEBA_FIRST_TEST_IMAGE = 182_638  # of the published partition


def open_folder(root: Path, split: Split) -> Encoded:
    """Every JPEG and PNG below the folder ``root``, or in the zip ``root``, cropped to the largest centred square.

    Subfolders ``train`` and ``test`` are the splits where both exist; otherwise either split is all of the images.
    Raises :class:`UserError` when there is no image, or the zip is damaged.
    """
    names, source = _listing(root)
    if {"train", "test"} <= {name.split("/", 1)[0] for name in names}:
        names = [name for name in names if name.startswith(f"{split}/")]
    home = root if root.is_dir() else root.parent
    return _encoded("folder", source, names, crop=None, home=home)


def open_celeba(root: Path, split: Split) -> Encoded:
    """CelebA, aligned and cropped: ``img_align_celeba`` as a folder or zip in ``<root>/celeba`` or ``root``.

    The splits are those of ``list_eval_partition.txt`` where it lies beside, else the published ones by image number;
    train includes the validation images, which nothing here uses otherwise. The centred 148 x 148 square is used.
    Raises :class:`UserError` when the set is absent or damaged, or the split has no image.
    """
    path = next((p for p in _celeba_places(root) if p.exists()), None)
    if path is None:
        raise UserError(
            f"CelebA is absent: looked for {', '.join(str(p.absolute()) for p in _celeba_places(root))}; download "
            f"Align&Cropped Images ({CELEBA_IMAGES}.zip) and {CELEBA_ATTRIBUTES} from the CelebA project page into "
            f"the first folder, or run `python -m fastinfogan.train --dataset mnist --amp` instead"
        )
    names, source = _listing(path)
    in_test = _celeba_test(path.parent / CELEBA_PARTITION)
    chosen = [name for name in names if in_test(PurePosixPath(name).name) == (split == "test")]
    if not chosen:
        raise UserError(
            f"none of the {len(names):,} images in {path} is in CelebA's {split} split: put the whole set there, or "
            f"a {CELEBA_PARTITION} beside it"
        )
    return _encoded("celeba", source, chosen, crop=CELEBA_CROP, home=path.parent)


def celeba_attributes(path: Path, names: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int8]]:
    """``list_attr_celeba.txt`` for the images ``names`` (folders in front are ignored).

    Returns the names of the 40 attributes and int8 [len(names), 40] of -1 and 1. Raises :class:`UserError` that names
    the line that is malformed, or the image that has none.
    """
    if not path.is_file():
        raise UserError(f"expected {path.absolute()}: download {CELEBA_ATTRIBUTES} from the CelebA project page")
    _, attributes, *lines = (line.split() for line in [*path.read_text().splitlines(), "", ""])
    values = {}
    for number, (name, *marks) in ((n, line) for n, line in enumerate(lines, start=3) if line):
        if len(marks) != len(attributes) or not set(marks) <= {"-1", "1"}:
            raise UserError(
                f"{path} line {number} ({name}) holds {len(marks)} values, expected {len(attributes)} of -1 or 1: "
                f"download it again"
            )
        values[name] = np.array(marks, np.int8)
    files = [PurePosixPath(name).name for name in names]
    if missing := [name for name in files if name not in values]:
        raise UserError(
            f"{path} describes {len(values):,} images but has no line for {missing[0]} ({len(missing):,} of "
            f"{len(files):,} lack one): download it again"
        )
    return tuple(attributes), np.stack([values[name] for name in files])


def require_channels(encoded: Encoded, tables: str) -> None:
    """Raise :class:`UserError` if one of the first files is in colour, for networks that take one channel."""
    from PIL import Image

    for index in range(min(SNIFFED, len(encoded))):
        try:
            picture = Image.open(io.BytesIO(encoded.read(index)))
        except OSError:
            continue  # damaged files are the decoder's to report
        if Image.getmodebase(picture.mode) == "RGB":  # what a palette and CMYK come down to as well
            channels = max(3, len(picture.getbands()))
            raise UserError(
                f"expected 1-channel images for the {tables} networks, got {channels} channels in "
                f"{encoded.names[index]}: pass --gray, or choose --tables celeba"
            )


@dataclass
class _Folder:
    root: Path
    stamps: dict[str, str]

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


@dataclass
class _Zip:
    """Reads from an archive that every thread of every process opens for itself: a shared handle would seek for all."""

    root: Path
    stamps: dict[str, str]
    _own: threading.local = field(default_factory=threading.local)

    def read(self, name: str) -> bytes:
        if getattr(self._own, "pid", None) != os.getpid():
            self._own.archive, self._own.pid = zipfile.ZipFile(self.root), os.getpid()
        try:
            content: bytes = self._own.archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise OSError(str(error)) from None  # a wrong sum, encryption, an unknown method: this file is damaged
        return content


Source = _Folder | _Zip


def _listing(path: Path) -> tuple[list[str], Source]:
    """Names of the images in a folder or zip, sorted, with ``/``; hidden files and macOS's resource files left out."""
    if path.is_dir():
        stamps = dict(_walk(path, ""))
        source: Source = _Folder(path, stamps)
    elif path.suffix.lower() == ".zip" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                stamps = {one.filename: f"{one.file_size} {one.CRC}" for one in archive.infolist() if not one.is_dir()}
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{path} of {path.stat().st_size:,} bytes is not a whole zip file ({error}), probably half "
                f"downloaded: download it again"
            ) from None
        source = _Zip(path, stamps)
    else:
        raise UserError(f"expected a folder or a zip of images, got {path.absolute()}: give one with --data")
    names = sorted(name for name in stamps if _is_image(name))
    if not names:
        raise UserError(
            f"{path.absolute()} holds no {', '.join(SUFFIXES)} file: give a folder or zip of images with --data"
        )
    return names, source


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif _is_image(entry.name):
                status = entry.stat()
                yield prefix + entry.name, f"{status.st_size} {status.st_mtime_ns}"


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _encoded(dataset: str, source: Source, names: Sequence[str], *, crop: int | None, home: Path) -> Encoded:
    digest = hashlib.sha256("\n".join(f"{name} {source.stamps[name]}" for name in names).encode())
    chosen = tuple(names)
    shown = tuple(str(source.root / name) for name in names)
    return Encoded(dataset, shown, lambda index: source.read(chosen[index]), crop, home, digest.hexdigest())


def _celeba_places(root: Path) -> list[Path]:
    return [folder / name for folder in (root / "celeba", root) for name in (CELEBA_IMAGES, f"{CELEBA_IMAGES}.zip")]


def _celeba_test(partition: Path) -> Callable[[str], bool]:
    """Whether an image of that file name belongs to the test split."""
    if not partition.is_file():
        return lambda name: name.split(".")[0].isdigit() and int(name.split(".")[0]) >= CELEBA_FIRST_TEST_IMAGE
    parts = dict(line.split()[:2] for line in partition.read_text().splitlines() if line.strip())
    return lambda name: parts.get(name) == "2"
