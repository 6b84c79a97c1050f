"""What is written over a file is there whole, or the file is as it was; what a new file needs, it has or it is gone."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from fastinfogan.files import allocate, exclusive, write_whole


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_whole(tmp_path / "a.json", b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"before"}


def test_two_processes_that_write_one_file_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, pid = os.fsync, os.getpid()

    def overtaken(descriptor: int) -> None:
        sync(descriptor)
        if os.getpid() == pid:
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            write_whole(tmp_path / "a.json", b"other")

    monkeypatch.setattr(os, "fsync", overtaken)
    write_whole(tmp_path / "a.json", b"this")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"this"}


def test_a_file_that_is_written_as_a_map_has_its_room_from_the_start(tmp_path: Path) -> None:
    mapped = allocate(tmp_path / "a.npy", (1000, 500), np.float32)
    status = (tmp_path / "a.npy").stat()
    assert not mapped.any() and status.st_blocks * 512 >= status.st_size > mapped.nbytes
    mapped[3] = 7
    assert (np.load(tmp_path / "a.npy")[3] == 7).all()


def test_a_disk_without_room_for_a_map_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        allocate(tmp_path / "a.npy", (1000,), np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_cannot_even_begin_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **_: object) -> None:
        path.write_bytes(b"half a header")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(OSError, match="No space left"):
        allocate(tmp_path / "a.npy", (1000,), np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_one_writes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    with exclusive(tmp_path / "lock"):
        pass
    refuse(errno.EWOULDBLOCK)
    with pytest.raises(BlockingIOError), exclusive(tmp_path / "lock"):
        pass
