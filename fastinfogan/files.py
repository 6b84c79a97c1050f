"""Files that a full disk does not spoil: replaced whole, or given all of their room before anything is in them."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` by way of a temporary name beside it, which an OSError leaves no trace of."""
    # Evaluations of one run may end together, also on two machines: each needs a name of its own.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def allocate(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The new file ``path`` (npy), mapped: zeros of ``shape`` and ``dtype``.

    A full disk is told now, by an OSError that leaves no file, and not by a bus error while the map is written.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return array


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the file ``lock``, made where it is not there. Raises BlockingIOError where another process holds it.

    Some network file systems have no locks, and are written to without.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
