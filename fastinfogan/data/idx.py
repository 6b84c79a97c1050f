"""The idx format of MNIST: a magic number, big-endian sizes, then bytes; plain or gzipped.

The length is checked to the byte, because a download that broke off otherwise shows up as black images.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastinfogan.errors import UserError

UNSIGNED_BYTE = 0x08
LIMIT = 2**30  # bytes of a file; MNIST has 2**26


def encode(array: npt.NDArray[np.uint8]) -> bytes:
    """``array`` (uint8, any shape) as the bytes of an idx file."""
    return struct.pack(f">HBB{array.ndim}I", 0, UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()


def raw(path: Path) -> bytes:
    """The bytes of ``path``; :class:`UserError` when they cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): make it readable, or delete it and fetch it again"
        ) from None


def unzipped(path: Path) -> bytes:
    """The content of ``path``, unzipped when it is gzipped; :class:`UserError` when the gzip is broken."""
    content = raw(path)
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            found = file.read(LIMIT + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is a broken gzip file of {len(content):,} bytes ({error}): delete it and fetch it again"
        ) from None
    if len(found) > LIMIT:
        raise UserError(f"{path} unzips to more than {LIMIT:,} bytes, and no idx file here is so large: delete it")
    return found


def read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in the idx file ``path``, plain or gzipped, see :func:`decode`."""
    return decode(unzipped(path), dimensions, path)


def decode(content: bytes, dimensions: int, path: Path) -> npt.NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes with ``dimensions`` axes (3 for images, 1 for labels), writable.

    ``path`` is what messages call it. Raises :class:`UserError` for another magic number, a truncated file, or bytes
    too many.
    """
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise UserError(
            f"{path} starts with bytes {content[:4].hex() or '(none)'}, expected {bytes((0, 0, 8, dimensions)).hex()} "
            f"of an idx file with {dimensions} axes: delete it and fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise UserError(f"{path} holds {len(content):,} bytes, expected {expected:,}: delete it and fetch it again")
    return np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(shape)
