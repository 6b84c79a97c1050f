"""Sets too large for one folder or zip, as tar shards that are read in place: by index, not from front to back.

``write_shards`` copies the compressed files of a split, in the order of the split, into tars of a few hundred
megabytes: the layout of webdataset, with the index that DALI's own ``wds2idx`` would write beside each tar, so that
other readers can take them. What lies in ``DIR/NAME/SPLIT`` (``DIR/SPLIT`` for a set of one's own):

- ``NAME-SPLIT-000000.tar``: files ``000000000.jpg ...``, numbered through all shards; ``....idx``: where each lies;
- ``factors.npz``, where the set has factors; ``shards.json``, last: what is whole, with hashes.

Here they are not read by DALI's ``readers.webdataset``: that one goes through a tar from front to back, shuffles within
a window, deals whole shards to ranks and keeps its place in a state of its own, so the batch of a step would depend on
the number of ranks and on where a run was resumed. With the index each file is read where it lies, and DALI decodes it,
as it does from a folder: the order is one permutation of the whole set, each rank reads the rows of its own part of the
batch, and a resumed run needs nothing but the step. The price is random reads, one a picture: keep shards on a disk
that can do them (any solid-state one), not on tape or a slow network.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pydantic
from tqdm import tqdm

from fastinfogan.data.archives import printable, read_at
from fastinfogan.data.decode import readable, require_few
from fastinfogan.data.factors import FILE, factors_of, write_factors
from fastinfogan.data.split import Encoded, Split
from fastinfogan.errors import UserError, first_line
from fastinfogan.files import exclusive, write_whole

MANIFEST = "shards.json"
LOCK = "lock"
SHARD_BYTES = 256 << 20
INDEX_VERSION = "v1.2"  # of DALI's wds2idx


@dataclass(frozen=True)
class Shard:
    """One tar: how many images and bytes it holds, its SHA-256 and that of its index; which images were not read."""

    file: str
    count: int
    size: int
    sha256: str
    index_sha256: str
    unread: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The shards of one split, and what they were written from; ``complete`` once all are there."""

    name: str
    split: Split
    crop: int | None
    fingerprint: str
    shard_bytes: int
    complete: bool
    shards: tuple[Shard, ...]


def write_shards(
    encoded: Encoded,
    out: Path,
    split: Split,
    *,
    shard_bytes: int = SHARD_BYTES,
    reject_limit: float = 0.01,
    progress: bool = True,
) -> Path:
    """Copy the files of ``encoded`` into tars of about ``shard_bytes`` below ``out``; returns their folder.

    Shards already there are verified by their hashes; the copy goes on after the last whole one. A file that cannot be
    read becomes an empty one, so that the numbers stay those of the set, and is named: decoding rejects it like any
    damaged file. Once it can be read again, the same command mends it. Raises :class:`UserError` when more than the
    share ``reject_limit`` cannot be read, when the folder holds the shards of another set or cannot be written, or
    another command is writing there.
    """
    folder = _folder(out, encoded.name, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK):
            _write_all(encoded, folder, split, shard_bytes, reject_limit, progress)
    except BlockingIOError:
        raise UserError(
            f"another command is writing shards to {folder.absolute()}: let it end, or choose another folder with "
            f"--shards"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write shards to {folder.absolute()} ({error}): free some space or choose another folder with "
            f"--shards, then repeat; whole shards are kept"
        ) from None
    return folder


def _write_all(
    encoded: Encoded, folder: Path, split: Split, shard_bytes: int, reject_limit: float, progress: bool
) -> None:
    manifest = Manifest(encoded.name, split, encoded.crop, encoded.fingerprint, shard_bytes, False, ())
    if (before := _read(folder)) is not None:
        if replace(before, complete=False, shards=()) != manifest:
            raise UserError(
                f"{folder.absolute()} holds shards of {before.name} {before.split} in another state or of another "
                f"size: choose another folder with --shards, or delete it"
            )
        manifest = replace(before, complete=False, shards=_whole(folder, before.shards, encoded))
    done = sum(shard.count for shard in manifest.shards)
    if encoded.factors:
        write_factors(folder / FILE, encoded.factors)
    label = f"sharding {encoded.name}"
    with tqdm(total=len(encoded), initial=done, desc=label, unit=" images", disable=not progress) as bar:
        while True:
            if unread := [index for shard in manifest.shards for index in shard.unread]:
                require_few(encoded, dict.fromkeys(unread, "it cannot be read"), reject_limit, tell=True)
            if done == len(encoded):
                break
            path = folder / f"{encoded.name}-{split}-{len(manifest.shards):06d}.tar"
            shard = _write(path, encoded, done, shard_bytes)
            manifest = replace(manifest, shards=(*manifest.shards, shard))
            _save(folder, manifest)
            done += shard.count
            bar.update(shard.count)
    _save(folder, replace(manifest, complete=True))


def are_there(dataset: str, root: Path, split: Split) -> bool:
    """Whether ``root`` has shards of ``split``, whole or not."""
    return (_folder(root, dataset, split) / MANIFEST).is_file()


def open_shards(dataset: str, root: Path, split: Split) -> Encoded | None:
    """The shards of ``split`` of ``dataset`` below ``root``, None where there are none.

    Raises :class:`UserError` when they are not all there, or a tar, an index or the factors do not agree.
    """
    folder = _folder(root, dataset, split)
    if (manifest := _read(folder)) is None:
        return None
    if not (manifest.complete and manifest.shards):
        raise UserError(f"the shards in {folder.absolute()} are not complete: run the same `prepare` again")
    parts = [_index(folder, shard) for shard in manifest.shards]
    where = np.concatenate([one for one, _ in parts])
    suffixes = [suffix for _, two in parts for suffix in two]
    ends = np.cumsum([shard.count for shard in manifest.shards])
    names = _Names([folder / shard.file for shard in manifest.shards], ends, suffixes)
    digest = hashlib.sha256("".join(shard.sha256 for shard in manifest.shards).encode()).hexdigest()

    def read(index: int) -> bytes:
        return read_at(names.shard(index), int(where[index, 0]), int(where[index, 1]))

    return Encoded(dataset, names, read, manifest.crop, folder, digest, factors=factors_of(folder, len(names)))


@dataclass(frozen=True)
class _Names(Sequence[str]):
    """Names of the files for messages, made when asked for: millions of strings would fill the memory."""

    paths: list[Path]
    ends: npt.NDArray[np.int64]
    suffixes: list[str]

    def __len__(self) -> int:
        return len(self.suffixes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return printable(f"{self.shard(index)}/{_member(index, self.suffixes[index])}")

    def shard(self, index: int) -> Path:
        return self.paths[int(np.searchsorted(self.ends, index, side="right"))]


def _folder(root: Path, dataset: str, split: Split) -> Path:
    return root / split if dataset == "folder" else root / dataset / split


def _member(number: int, suffix: str) -> str:
    return f"{number:09d}.{suffix}"


def _write(path: Path, encoded: Encoded, first: int, shard_bytes: int) -> Shard:
    """One tar with its index, from image ``first`` on; both get their names when they are whole."""
    part, index, digest, at, number = path.with_suffix(".part"), [], hashlib.sha256(), 0, first
    unread = []
    with part.open("wb") as file:
        while number < len(encoded) and (at < shard_bytes or number == first):
            try:
                content = encoded.read(number)
            except OSError as error:
                print(f"rejected {encoded.names[number]}: {error}", file=sys.stderr)
                content = b""
                unread.append(number)
            suffix = encoded.names[number].rsplit(".", 1)[-1].lower()
            member = tarfile.TarInfo(_member(number, suffix))
            member.size = len(content)
            index.append(f"{suffix} {at + tarfile.BLOCKSIZE} {len(content)} {member.name}")
            padded = member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
            digest.update(padded)
            at += file.write(padded)
            number += 1
        end = bytes(2 * tarfile.BLOCKSIZE)
        digest.update(end)
        at += file.write(end)
        file.flush()
        os.fsync(file.fileno())
    text = "\n".join([f"{INDEX_VERSION} {len(index)}", *index]) + "\n"
    path.with_suffix(".idx").write_text(text)
    part.rename(path)
    of_index = hashlib.sha256(text.encode()).hexdigest()
    return Shard(path.name, number - first, at, digest.hexdigest(), of_index, tuple(unread))


def _whole(folder: Path, shards: tuple[Shard, ...], encoded: Encoded) -> tuple[Shard, ...]:
    """The first of ``shards`` up to one that is not what its hash says, or lacks a file that can be read by now."""
    for number, shard in enumerate(shards):
        if any(readable(encoded, index) for index in shard.unread):
            print(f"notice: what {folder / shard.file} lacked can be read, it is written anew", file=sys.stderr)
            return shards[:number]
        try:
            with (folder / shard.file).open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
            _index(folder, shard)
        except (OSError, UserError):
            same = False
        if not same:
            print(f"notice: {folder / shard.file} is damaged and is written anew", file=sys.stderr)
            return shards[:number]
    return shards


def _index(folder: Path, shard: Shard) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Offset and size of each file in ``shard``, int64 [count, 2], and their suffixes."""
    tar = folder / shard.file
    path = tar.with_suffix(".idx")
    try:
        if shard.file != tar.name:
            raise ValueError(f"{shard.file} is no name of a file there")
        if (size := tar.stat().st_size) != shard.size:
            raise ValueError(f"{tar.name} holds {size:,} bytes, expected {shard.size:,}")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            raise ValueError(f"{path.name} is not the one that was written")
        rows = [line.split(" ") for line in content.decode().splitlines()[1:]]
        if len(rows) != shard.count:
            raise ValueError(f"{path.name} has {len(rows):,} files, expected {shard.count:,}")
        where = np.array([(row[1], row[2]) for row in rows]).astype(np.int64)
        if where.min() < 0 or (where.sum(1) > shard.size).any():
            raise ValueError(f"{path.name} points outside {tar.name}")
        return where, [row[0] for row in rows]
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise UserError(
            f"the shards in {folder.absolute()} are damaged ({error}): run the same `prepare` again"
        ) from None


def _read(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    try:
        return pydantic.TypeAdapter(Manifest).validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"cannot read {path.absolute()} ({error.strerror}): make its folder readable, or give another --data"
        ) from None
    except pydantic.ValidationError as error:
        raise UserError(f"{path.absolute()} is damaged ({first_line(error)}): delete it and shard again") from None


def _save(folder: Path, manifest: Manifest) -> None:
    write_whole(folder / MANIFEST, (json.dumps(asdict(manifest), indent=1) + "\n").encode())
