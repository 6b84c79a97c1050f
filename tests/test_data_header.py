"""A picture's size is known, and an absurd one refused, before any decoder sees the file."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import bomb, photograph, truncated
from PIL import Image

from fastinfogan.data.header import MAX_PIXELS, MAX_SIDE, Refused, require_decodable, size_of


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (300, 211)).save(content, kind, **options)
    return content.getvalue()


FILES = {
    "baseline": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True),
    "grey": saved("JPEG", "L"),
    "cmyk": saved("JPEG", "CMYK"),
    "with a thumbnail of another size": saved(
        "JPEG", exif=b"Exif\0\0" + photograph(1, 20, 30), comment=b"\xff\xc0" * 9
    ),
    "filled": b"\xff\xd8\xff\xff\xff" + saved("JPEG")[3:],
    "with bytes between segments": b"\xff\xd8\xff\xff\xff\x00\x01\x02" + saved("JPEG")[2:],
    "png": saved("PNG", "RGBA"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_the_one_that_the_picture_has(name: str) -> None:
    assert size_of(FILES[name]) == (300, 211)
    if not name.startswith(("filled", "with bytes")):  # PIL is stricter than the decoders about those
        assert Image.open(io.BytesIO(FILES[name])).size == (300, 211)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (50_000, 1), (1, 50_000), (MAX_SIDE, 4097)])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_size(kind: str, width: int, height: int) -> None:
    content = bomb(width, height, kind)
    assert len(content) < 2000
    with pytest.raises(Refused, match=f"its header says {width:,} x {height:,} pixels, more than .*: scale it down"):
        require_decodable(content, f"a.{kind}")


def test_the_largest_picture_allowed_is_allowed() -> None:
    assert MAX_PIXELS == MAX_SIDE * 4096
    require_decodable(bomb(MAX_SIDE, 4096), "a.png")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jpg", photograph(0, kind="PNG"), "a PNG file named .jpg: rename it, or convert it to JPEG"),
        ("a.png", photograph(0), "a JPEG file named .png: rename it, or convert it to PNG"),
        ("a.jpg", photograph(0, kind="WEBP"), "a WebP file named .jpg"),
        ("a.PNG", photograph(0, kind="BMP"), "a BMP file named .png"),
        ("a.jpeg", photograph(0, kind="TIFF"), "a TIFF file named .jpeg"),
        ("a.jpg", photograph(0, kind="JPEG2000"), "a JPEG 2000 file named .jpg"),
        ("a.jpg", b"", "the file is empty"),
        ("a.jpg", b"<html>404", "not an image, it starts with 3c 68 74 6d 6c 3e 34 30"),
        ("a.png", photograph(0, kind="PNG")[:20], "truncated: a PNG without its header"),
        ("a.jpg", truncated(photograph(0), 0.02), "truncated: a JPEG that ends before it says its size"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, content: bytes, told: str) -> None:
    with pytest.raises(Refused, match=f"^{told}"):
        require_decodable(content, name)


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "shards/c.tar/000000001.jpg"])
def test_an_honest_file_passes(name: str) -> None:
    require_decodable(photograph(0), name)
    require_decodable(photograph(0, kind="PNG"), "a.Png")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=60))
def test_any_bytes_have_a_size_or_are_refused(start: bytes, rest: bytes) -> None:
    try:
        width, height = size_of(start + rest)
    except Refused:
        return
    assert 0 <= width < 1 << 32 and 0 <= height < 1 << 32
