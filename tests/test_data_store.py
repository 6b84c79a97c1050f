"""A store of decoded pixels is built once, survives being killed at any point, and is believed by its hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastinfogan.data import store
from fastinfogan.data.split import Rejected
from fastinfogan.data.store import Blocks, Bytes, Stored
from fastinfogan.errors import UserError

N, SHAPE = 22, (22, 4, 4, 1)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
LOST = {3: Rejected("3.jpg", "cut"), 20: Rejected("20.jpg", "empty")}
EXPECTED = np.delete(PIXELS, list(LOST), axis=0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 5)


def source(asked: list[int] | None = None, stop: BaseException | None = None, at: int = 99) -> Blocks:
    """The blocks of PIXELS without LOST; the numbers of those made go to ``asked``, block ``at`` raises ``stop``."""

    def blocks(first: int, rejected: dict[int, Rejected]) -> Iterator[tuple[Bytes, dict[int, Rejected]]]:
        assert rejected == {index: one for index, one in LOST.items() if index < 5 * first}
        for block in range(first, 5):
            if block == at and stop is not None:
                raise stop
            rows = range(5 * block, min(5 * block + 5, N))
            if asked is not None:
                asked.append(block)
            lost = {row: LOST[row] for row in rows if row in LOST}
            yield PIXELS[[row for row in rows if row not in lost]], lost

    return blocks


def keep(home: Path, blocks: Blocks, **others: Any) -> Stored:
    return store.keep("made", home, "key", SHAPE, blocks, progress=False, **others)


def kinds(home: Path) -> set[str]:
    return {path.suffix for path in (home / store.FOLDER).iterdir()} - {""}


def assert_whole(stored: Stored) -> None:
    assert np.array_equal(stored.pixels, EXPECTED) and stored.rejected == LOST


def test_a_store_is_built_once_and_mapped_after_that(tmp_path: Path) -> None:
    asked: list[int] = []
    assert_whole(keep(tmp_path, source(asked)))
    assert asked == [0, 1, 2, 3, 4] and kinds(tmp_path) == {".npy", ".json"}
    again = keep(tmp_path, source(asked))
    assert_whole(again)
    assert asked == [0, 1, 2, 3, 4] and isinstance(again.pixels, np.memmap)


def test_what_is_done_to_the_pixels_does_not_reach_the_file(tmp_path: Path) -> None:
    for _ in range(2):  # built, then found
        stored = keep(tmp_path, source())
        assert_whole(stored)
        stored.pixels[:] = 0


def test_the_record_holds_a_hash_of_every_block(tmp_path: Path) -> None:
    keep(tmp_path, source())
    (record,) = (tmp_path / store.FOLDER).glob("*.json")
    notes = json.loads(record.read_text())
    assert [note["rows"] for note in notes] == [4, 5, 5, 5, 1]
    assert len({note["sha256"] for note in notes}) == 5


def test_a_store_in_blocks_of_another_size_is_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped build counts what is done in blocks."""
    keep(tmp_path, source())
    monkeypatch.setattr(store, "BLOCK", 6)
    keep(tmp_path, lambda *_: iter([(EXPECTED, LOST)]))
    assert len(list((tmp_path / store.FOLDER).glob("*.npy"))) == 2


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_build_that_was_stopped_goes_on_after_its_last_block(
    tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, source(stop=KeyboardInterrupt(), at=at))
    assert kinds(tmp_path) == {".part", ".blocks"}  # nothing has the name of a finished store
    asked: list[int] = []
    assert_whole(keep(tmp_path, source(asked)))
    assert asked == list(range(at, 5)) and kinds(tmp_path) == {".npy", ".json"}
    assert (f"going on after {5 * at} images" in capsys.readouterr().err) == (at > 0)


def test_a_build_stopped_before_the_rename_has_only_that_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        keep(tmp_path, source())
    assert_whole(keep(tmp_path, source(stop=AssertionError("made again"), at=0)))


@pytest.mark.parametrize("damage", ["pixels", "half a note", "no note", "another shape"])
def test_what_a_stopped_build_left_is_believed_as_far_as_its_hashes_agree(tmp_path: Path, damage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, source(stop=KeyboardInterrupt(), at=3))
    (part,), (journal,) = ((tmp_path / store.FOLDER).glob(kind) for kind in ("*.part", "*.blocks"))
    if damage == "pixels":
        np.load(part, mmap_mode="r+")[6] ^= 1  # within block 1
    elif damage == "half a note":
        journal.write_text(journal.read_text()[:-30])  # of block 2
    elif damage == "no note":
        journal.unlink()
    else:
        np.save(part.with_suffix(".npy"), PIXELS[:4])
        part.with_suffix(".npy").rename(part)
    asked: list[int] = []
    assert_whole(keep(tmp_path, source(asked)))
    assert asked[0] == {"pixels": 1, "half a note": 2}.get(damage, 0)


@pytest.mark.parametrize("error", [UserError("too many"), OSError(28, "No space left on device")])
def test_a_build_that_cannot_succeed_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        keep(tmp_path, source(stop=error, at=2))
    assert kinds(tmp_path) == set()


def test_a_disk_without_room_costs_a_notice_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "posix_fallocate", full)
    assert_whole(keep(tmp_path, source()))
    assert "decoded images stay in memory" in capsys.readouterr().err and kinds(tmp_path) == set()


def test_a_flipped_bit_is_found_where_it_is_looked_for_and_the_store_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, source())
    (path,) = (tmp_path / store.FOLDER).glob("*.npy")
    asked: list[int] = []
    assert_whole(keep(tmp_path, source(asked), verify=True))
    assert asked == [] and capsys.readouterr().err == ""
    content = bytearray(path.read_bytes())
    content[-PIXELS[0].size * 5] ^= 1  # a picture near the end, before the rows that stay empty
    path.write_bytes(content)
    assert_whole(keep(tmp_path, source(asked), verify=True))
    assert asked == [0, 1, 2, 3, 4] and f"{path} is damaged and is made anew" in capsys.readouterr().err


def unwritable(home: Path) -> None:
    """Let the lock be out of reach, as in a folder that cannot be written; root may write whatever its mode is."""
    lock = home / store.FOLDER / "lock"
    lock.unlink()
    lock.mkdir()


def test_a_finished_store_is_used_where_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, source())
    unwritable(tmp_path)
    for verify in (False, True):
        stored = keep(tmp_path, source(stop=AssertionError("made again"), at=0), verify=verify)
        assert_whole(stored)
        assert isinstance(stored.pixels, np.memmap)
    assert capsys.readouterr().err == ""


def test_where_nothing_can_be_written_a_damaged_store_is_left_and_no_other_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, source())
    unwritable(tmp_path)
    (path,) = (tmp_path / store.FOLDER).glob("*.npy")
    path.write_bytes(cut := path.read_bytes()[:50])
    assert_whole(keep(tmp_path, source()))
    assert "decoded images stay in memory" in capsys.readouterr().err
    assert kinds(tmp_path) == {".npy", ".json"} and path.read_bytes() == cut


@pytest.mark.parametrize("victim", [".npy", ".json"])
def test_a_truncated_store_is_made_anew(tmp_path: Path, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, source())
    (path,) = (tmp_path / store.FOLDER).glob(f"*{victim}")
    path.write_bytes(path.read_bytes()[:50])
    assert_whole(keep(tmp_path, source()))
    assert "is damaged and is made anew" in capsys.readouterr().err
    assert_whole(keep(tmp_path, source(stop=AssertionError("made again"), at=0)))


def test_a_block_of_nothing_but_damage_is_a_block(tmp_path: Path) -> None:
    lost = {row: Rejected(f"{row}", "cut") for row in range(5)}

    def blocks(first: int, rejected: dict[int, Rejected]) -> Iterator[tuple[Bytes, dict[int, Rejected]]]:
        if first == 0:
            yield PIXELS[:0], lost
            raise KeyboardInterrupt
        assert rejected == lost
        yield PIXELS[5:8], {}

    with pytest.raises(KeyboardInterrupt):
        store.keep("made", tmp_path, "key", (8, 4, 4, 1), blocks, progress=False)
    stored = store.keep("made", tmp_path, "key", (8, 4, 4, 1), blocks, progress=False)
    assert np.array_equal(stored.pixels, PIXELS[5:8]) and stored.rejected == lost
