"""Where compressed images lie: a folder, a zip or a tar, read in place and never unpacked.

Unpacking 202,599 files takes longer than decoding them, and a file that is never written cannot be written to the
wrong place. Listing reads names, sizes and dates only; the pictures are read when their turn comes. An archive comes
from outside, so its names and sizes are checked before anything else believes them.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import struct
import tarfile
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastinfogan.data.header import SUFFIX_KINDS
from fastinfogan.data.split import Encoded, Factors
from fastinfogan.errors import UserError

SUFFIXES = tuple(f".{suffix}" for suffix in SUFFIX_KINDS)
RECORD, SHEET = "render.json", "contact.png"  # beside what the renderers draw: the sheet is no image of the set
MAX_BYTES = 1 << 28  # of one compressed picture; more is no picture
# What zipfile raises about a damaged archive, beside OSError: encryption and unknown methods are among it.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError
)  # fmt: skip
# What numpy raises about a damaged array of its own format, zipped or not.
ARRAY_ERRORS = (OSError, MemoryError, OverflowError, tokenize.TokenError, *ZIP_ERRORS)


@dataclass
class Folder:
    """Image files below ``root``; ``stamps`` is what would change with a file."""

    root: Path
    stamps: dict[str, str]

    def read(self, name: str) -> bytes:
        path = self.root / name
        _require_sane(path.stat().st_size)
        return path.read_bytes()


@dataclass
class Zip:
    """Reads from an archive that every thread of every process opens for itself: a shared handle would seek for all."""

    root: Path
    stamps: dict[str, str]
    _own: threading.local = field(default_factory=threading.local)

    def read(self, name: str) -> bytes:
        try:
            if getattr(self._own, "pid", None) != os.getpid():
                self._own.archive, self._own.pid = zipfile.ZipFile(self.root), os.getpid()
            _require_sane(self._own.archive.getinfo(name).file_size)
            content: bytes = self._own.archive.read(name)
        except (*ZIP_ERRORS, KeyError) as error:
            raise OSError(str(error)) from None  # this file is damaged
        return content


@dataclass
class Tar:
    """Reads by offset from an archive without compression; ``places`` is name -> (offset, bytes)."""

    root: Path
    stamps: dict[str, str]
    places: dict[str, tuple[int, int]]

    def read(self, name: str) -> bytes:
        return read_at(self.root, *self.places[name])


Source = Folder | Zip | Tar


def read_at(path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of a file; OSError where it ends before that. Opened anew each time: nothing is shared."""
    _require_sane(size)
    with path.open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), size, offset)
    if len(content) != size:
        raise OSError(f"{path} ends within this file")
    return content


def listing(path: Path) -> tuple[list[str], Source]:
    """Names of the images in a folder, zip or tar, sorted, with ``/``; hidden and macOS's resource files left out.

    Raises :class:`UserError` when there is no image, the archive is damaged, or a name in it leads out of it.
    """
    if path.is_dir():
        source: Source = Folder(path, dict(_walk(path, "")))
    elif path.is_file() and path.suffix.lower() == ".zip":
        source = _open_zip(path)
    elif path.is_file() and path.suffix.lower() == ".tar":
        source = _open_tar(path)
    else:
        raise UserError(f"expected a folder, a zip or a tar of images, got {path.absolute()}: give one with --data")
    names = sorted(name for name in source.stamps if _is_image(name))
    if not names:
        raise UserError(
            f"{path.absolute()} holds no {', '.join(SUFFIXES)} file: give a folder, zip or tar of images with --data"
        )
    return names, source


def encode(
    dataset: str, source: Source, names: Sequence[str], *, crop: int | None, home: Path, factors: Factors | None = None
) -> Encoded:
    """The files ``names`` of ``source`` as a split."""
    listed = "\n".join(f"{name} {source.stamps[name]}" for name in names)
    digest = hashlib.sha256(listed.encode("utf-8", "surrogateescape"))  # a name is bytes, and not always UTF-8
    chosen = tuple(names)
    shown = tuple(printable(str(source.root / name)) for name in names)
    return Encoded(
        dataset, shown, lambda index: source.read(chosen[index]), crop, home, digest.hexdigest(), factors=factors
    )


def printable(name: str) -> str:
    """``name`` as it is printed and noted: neither a terminal nor JSON takes one that is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _open_zip(path: Path) -> Zip:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
    except (OSError, *ZIP_ERRORS) as error:
        raise _damaged(path, f"is not a whole zip file ({error})") from None
    _require_inside(path, (one.filename for one in members))
    return Zip(path, {one.filename: f"{one.file_size} {one.CRC}" for one in members})


def _open_tar(path: Path) -> Tar:
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            members = [one for one in archive if one.isreg() and not one.issparse()]  # no links, no devices
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _damaged(path, f"is not a whole tar file without compression ({error})") from None
    # zeros end every tar: a file that broke off between two members, or is damaged there, shows in nothing else
    if end != bytes(tarfile.BLOCKSIZE):
        raise _damaged(path, f"is not a whole tar file (no end mark after {len(members):,} files)")
    _require_inside(path, (one.name for one in members))
    # `tar -C photos .` puts ./ before each name
    named = {str(PurePosixPath(one.name)): one for one in members}
    stamps = {name: f"{one.size} {one.mtime}" for name, one in named.items()}
    return Tar(path, stamps, {name: (one.offset_data, one.size) for name, one in named.items()})


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} of {path.stat().st_size:,} bytes {what}, probably half downloaded: download it again")


def _require_inside(path: Path, names: Iterator[str]) -> None:
    for name in names:
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name:
            raise UserError(
                f"{path} holds a file named {name!r}, which leads out of the archive: it was made to harm, get it "
                f"from where it is published"
            )


def _require_sane(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"the file holds {size:,} bytes, more than the {MAX_BYTES:,} that a picture may")


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, str]]:
    """Names and stamps below ``folder``, which is left out where it is one of ``above``, the folders that led to it."""
    try:
        status = folder.stat()
        if (here := (status.st_dev, status.st_ino)) in above:
            return  # a link back up, which would lead here again and again
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
        if any(entry.name == RECORD for entry in found):
            found = [entry for entry in found if entry.name != SHEET]
    except OSError as error:
        raise UserError(
            f"cannot list the folder {folder.absolute()} ({error.strerror}): make it readable, or give another one "
            f"with --data"
        ) from None
    for entry in found:
        try:
            status = entry.stat()
        except OSError:
            # a link to nothing: listed, so that reading it fails and it is told among the rejected files
            if _is_image(entry.name):
                yield prefix + entry.name, "unreadable"
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        elif _is_image(entry.name) and stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            yield prefix + entry.name, f"{status.st_size} {status.st_mtime_ns}"


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") or part == "__MACOSX" for part in parts)
