"""Decoded pixels kept in a file that is mapped, not read: built once, block by block, and found again.

A store is ``NAME-KEY.npy`` (uint8 [n, H, W, C]) with ``NAME-KEY.json``, which says how many rows are filled, which
files have none, and the SHA-256 of every block. While it is built it is called ``.part``, and each finished block is
noted in ``.blocks``; a build that was killed goes on after the last block whose hash agrees. The ``.npy`` gets its name
last, so its presence says that all is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydantic
from tqdm import tqdm

from fastinfogan.data.archives import ARRAY_ERRORS
from fastinfogan.data.split import Rejected
from fastinfogan.errors import UserError
from fastinfogan.files import allocate

FOLDER = ".fastinfogan"
BLOCK = 1024  # images of the source from one note to the next

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Note:
    """One finished block: ``rows`` pictures of at most BLOCK files, their hash, and the files without a row."""

    rows: int
    sha256: str
    rejected: dict[int, Rejected] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """``pixels`` uint8 [n - rejected, H, W, C], mapped from a file where possible; ``rejected`` by number of file."""

    pixels: Bytes
    rejected: dict[int, Rejected]


# From block k on, knowing the files rejected before it: the pictures of each block, and the files without one.
Blocks = Callable[[int, dict[int, Rejected]], Iterator[tuple[Bytes, dict[int, Rejected]]]]


def keep(
    name: str,
    home: Path,
    key: str,
    shape: tuple[int, ...],
    blocks: Blocks,
    *,
    progress: bool = True,
    verify: bool = False,
    on_disk: bool = True,
    outdated: Callable[[dict[int, Rejected]], bool] = lambda _: False,
) -> Stored:
    """The store of the set ``name`` in ``home``/.fastinfogan, built from ``blocks`` where it is not there yet.

    ``key`` changes when any picture would; ``shape`` is [n, H, W, C] with n the number of files. ``verify`` reads all
    of a finished store and builds it anew where a hash disagrees, as it is where ``outdated`` of the files that it has
    rejected is true. When several processes ask at once, one builds and the others wait. In a folder that cannot be
    written a finished store is used; without one this costs a notice, and the pixels stay in memory, as they do
    without ``on_disk``; with ``verify``, which asks for a store, it is an error. What ``blocks`` raises as
    :class:`UserError` or OSError leaves nothing behind.
    """
    base = home / FOLDER / f"{name}-{hashlib.sha256(f'{key} {shape} {BLOCK}'.encode()).hexdigest()[:16]}"
    with contextlib.ExitStack() as cleanup:
        notes: list[Note] = []
        pixels: Bytes | None = None
        if on_disk:
            try:
                refused = cleanup.enter_context(_locked(base.parent))
                if (stored := _load(base, shape, verify)) and (refused or not outdated(stored.rejected)):
                    return stored
                if refused:
                    raise refused
                pixels, notes = _begin(base, shape)
            except OSError as error:
                if verify:
                    raise UserError(
                        f"cannot keep decoded images in {base.parent} ({error}): free some space, or make it writable"
                    ) from None
                print(f"notice: decoded images stay in memory, {base.parent} cannot be used ({error})", file=sys.stderr)
        if pixels is None:
            return _fill(np.empty(shape, np.uint8), notes, blocks, f"decoding {name}", progress, None)
        try:
            stored = _fill(pixels, notes, blocks, f"decoding {name}", progress, base.with_suffix(".blocks"))
            _finish(base, notes)
        except (UserError, OSError):  # a build that cannot succeed leaves nothing; one that was stopped goes on
            _discard(base)
            raise
        return _load(base, shape, verify=False) or stored  # read-only to the file, as it is for the next who asks


def _fill(pixels: Bytes, notes: list[Note], blocks: Blocks, label: str, progress: bool, journal: Path | None) -> Stored:
    """Fill ``pixels`` from the first block without a note on; ``notes`` grows with them."""
    count = sum(note.rows for note in notes)
    rejected = {index: one for note in notes for index, one in note.rejected.items()}
    n_blocks = -(-len(pixels) // BLOCK)
    done = min(len(notes) * BLOCK, len(pixels))
    with tqdm(total=len(pixels), initial=done, desc=label, unit=" images", disable=not progress) as bar:
        for made, lost in blocks(len(notes), dict(rejected)) if len(notes) < n_blocks else ():
            pixels[count : count + len(made)] = made
            count += len(made)
            rejected |= lost
            if journal is not None:
                notes.append(Note(len(made), _sha256(made), lost))
                with journal.open("a") as file:
                    file.write(json.dumps(asdict(notes[-1])) + "\n")
            bar.update(len(made) + len(lost))
    return Stored(pixels[:count], rejected)


def _begin(base: Path, shape: tuple[int, ...]) -> tuple[Bytes, list[Note]]:
    """The part file, and the notes of the blocks in it that are whole: none for a new one."""
    base.with_suffix(".npy").unlink(missing_ok=True)  # a damaged one
    part, journal = base.with_suffix(".part"), base.with_suffix(".blocks")
    notes: list[Note] = []
    try:
        pixels = np.load(part, mmap_mode="r+", allow_pickle=False)
        if pixels.shape == shape and pixels.dtype == np.uint8:
            notes = _agreeing(pixels, list(_notes(journal)))
    except ARRAY_ERRORS:
        pass  # no build was interrupted here, or nothing of it can be used
    if not notes:
        _discard(base)
        pixels = allocate(part, shape, np.uint8)
    else:
        print(f"going on after {len(notes) * BLOCK:,} images decoded before", file=sys.stderr)
    journal.write_text("".join(json.dumps(asdict(note)) + "\n" for note in notes))
    return pixels, notes


def _finish(base: Path, notes: list[Note]) -> None:
    base.with_suffix(".json").write_text(json.dumps([asdict(note) for note in notes]))
    part = base.with_suffix(".part")
    with part.open("rb") as file:
        os.fsync(file.fileno())  # or a power cut could leave the name without the pixels
    part.rename(base.with_suffix(".npy"))
    base.with_suffix(".blocks").unlink(missing_ok=True)


def _load(base: Path, shape: tuple[int, ...], verify: bool) -> Stored | None:
    """The finished store, or None where there is none or it is damaged, which is said."""
    path, record = base.with_suffix(".npy"), base.with_suffix(".json")
    if not (path.exists() and record.exists()):
        return None
    try:
        notes = pydantic.TypeAdapter(list[Note]).validate_json(record.read_bytes())
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)  # "c": PyTorch wants to write, the file stays
        whole = pixels.shape == shape and pixels.dtype == np.uint8
    except ARRAY_ERRORS:
        notes, whole = [], False
    if not whole or (verify and len(_agreeing(pixels, notes)) < len(notes)):
        print(f"notice: {path} is damaged and is made anew", file=sys.stderr)
        return None
    rejected = {index: one for note in notes for index, one in note.rejected.items()}
    return Stored(pixels[: sum(note.rows for note in notes)], rejected)


def _agreeing(pixels: Bytes, notes: list[Note]) -> list[Note]:
    """The first of ``notes`` up to one whose hash is not that of its pictures."""
    first = 0
    for number, note in enumerate(notes):
        if note.sha256 != _sha256(pixels[first : first + note.rows]):
            return notes[:number]
        first += note.rows
    return notes


def _notes(journal: Path) -> Iterator[Note]:
    """What ``journal`` says, up to a line that was not written to its end."""
    with contextlib.suppress(pydantic.ValidationError):
        for line in journal.read_text().splitlines():
            yield pydantic.TypeAdapter(Note).validate_json(line)


def _sha256(pixels: Bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).reshape(-1).data).hexdigest()


def _discard(base: Path) -> None:
    for suffix in (".part", ".blocks"):
        base.with_suffix(suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[OSError | None]:
    """Hold the lock of ``folder``; where it cannot be had, give the reason: finished stores need none to be read."""
    with contextlib.ExitStack() as cleanup:
        refused = None
        try:
            folder.mkdir(exist_ok=True)
            fcntl.flock(cleanup.enter_context((folder / "lock").open("w")), fcntl.LOCK_EX)
        except OSError as error:
            refused = error
        yield refused
