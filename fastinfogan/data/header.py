"""The size of a JPEG or PNG from its first bytes, so that no picture is decoded that would fill the memory.

A few kilobytes of PNG can stand for 50,000 x 50,000 pixels. A decoder believes them, so what the header says is looked
at before any decoder sees the file. A file whose content is not what its suffix says is refused as well: what wrote
such names is broken, and a kind that this module cannot read the size of must not slip past it.
"""

from __future__ import annotations

import struct

SUFFIX_KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG"}
MAX_SIDE = 16_384
MAX_PIXELS = 1 << 26  # a batch of such pictures, decoded by several threads at once, still fits a workstation

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
}
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; three of the range mean other things
_ALONE = frozenset({0x00, 0x01, 0xD8, *range(0xD0, 0xD8)})  # markers without a length


class Refused(Exception):
    """A file that is not to be decoded, and why."""


def require_decodable(content: bytes, name: str) -> None:
    """Raise :class:`Refused` unless ``content`` is the kind of picture that ``name`` ends in, of a sane size."""
    if not content:
        raise Refused("the file is empty")
    kind = next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), None)
    if kind is None:
        raise Refused(f"not an image, it starts with {content[:8].hex(' ')}")
    suffix = name.rsplit(".", 1)[-1].lower()
    if SUFFIX_KINDS.get(suffix) != kind:
        raise Refused(f"a {kind} file named .{suffix}: rename it, or convert it to {SUFFIX_KINDS.get(suffix, 'JPEG')}")
    width, height = size_of(content)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise Refused(
            f"its header says {width:,} x {height:,} pixels, more than {MAX_SIDE:,} a side or {MAX_PIXELS:,} in all: "
            f"scale it down"
        )


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height that the header of a JPEG or PNG claims; :class:`Refused` where it breaks off before that."""
    if content.startswith(b"\x89PNG"):
        if len(content) < 24 or content[12:16] != b"IHDR":
            raise Refused("truncated: a PNG without its header")
        width, height = struct.unpack(">II", content[16:24])
        return width, height
    at = 2
    while at + 9 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0xFF:  # bytes too many between segments: decoders skip them too
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4])
    raise Refused("truncated: a JPEG that ends before it says its size")
