"""What is written over a file is there whole, or the file is as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastinfogan.files import write_whole


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
