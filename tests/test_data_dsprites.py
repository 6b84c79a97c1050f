"""dSprites: the published file is unpacked once, block by block, and a file that is another one is told."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import Trap, truncated, write_dsprites

from fastinfogan.data import Decoded, open_split, store
from fastinfogan.errors import UserError


def test_dsprites_is_white_on_black_with_the_published_classes(tmp_path: Path) -> None:
    arrays = write_dsprites(tmp_path, 12)
    opened = open_split("dsprites", tmp_path, "train", (1, 64, 64))
    assert isinstance(opened, Decoded) and opened.factors is not None and opened.labels is not None
    assert np.array_equal(opened.pixels[..., 0], arrays["imgs"] * np.uint8(255))
    assert opened.factors.names == ("shape", "scale", "orientation", "x", "y")
    assert opened.factors.kinds == ("categorical", "continuous", "circular", "continuous", "continuous")
    assert np.array_equal(opened.factors.values, arrays["latents_classes"][:, 1:])
    assert opened.factors.high == (2, 5, 39, 31, 31) and opened.labels.tolist() == [i % 3 for i in range(12)]


def test_dsprites_is_unpacked_once_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", 5)
    arrays = write_dsprites(tmp_path, 12)
    sha, notes = store._sha256, []

    def stopping(pixels: store.Bytes) -> str:
        notes.append(len(pixels))
        if len(notes) == 2:
            raise KeyboardInterrupt
        return sha(pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_sha256", stopping)
        open_split("dsprites", tmp_path, "train", (1, 64, 64))
    for _ in range(2):
        opened = open_split("dsprites", tmp_path, "train", (1, 64, 64))
        assert np.array_equal(opened.pixels[..., 0], arrays["imgs"] * np.uint8(255))
        monkeypatch.setattr(store, "_fill", lambda *_: pytest.fail("unpacked again"))


def test_other_sprites_in_as_many_bytes_are_unpacked_anew(tmp_path: Path) -> None:
    arrays = write_dsprites(tmp_path, 12)
    for imgs in (arrays["imgs"], 1 - arrays["imgs"]):
        write_dsprites(tmp_path, 12, imgs=imgs)
        opened = open_split("dsprites", tmp_path, "train", (1, 64, 64))
        assert np.array_equal(opened.pixels[..., 0], imgs * np.uint8(255))


CLASSES = np.zeros((12, 6), np.int64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"imgs": np.zeros((12, 64, 64))}, r"not a whole dSprites file \(imgs are float64, expected uint8 in C order"),
        ({"imgs": np.asfortranarray(np.zeros((12, 64, 64), np.uint8))}, "uint8 in Fortran order, expected uint8 in C"),
        ({"imgs": np.zeros((12, 32, 32), np.uint8)}, r"imgs are \[12, 32, 32\], expected \[n, 64, 64\]"),
        ({"imgs": np.zeros((0, 64, 64), np.uint8)}, r"imgs are \[0, 64, 64\]"),
        ({"imgs": np.array([{}] * 12, dtype=object)}, "imgs are object, expected uint8"),
        ({"imgs": np.full((12, 64, 64), 2, np.uint8)}, "holds the pixel value 2, expected 0 and 1"),
        ({"latents_classes": CLASSES[:9]}, r"holds 12 imgs and latents_classes int64 \[9, 6\], expected integers"),
        ({"latents_classes": CLASSES.astype(float)}, "latents_classes float64"),
        ({"latents_classes": CLASSES + 1}, "holds classes outside 1, 3, 6, 40, 32, 32"),
        ({"latents_classes": CLASSES.astype(object)}, "not a whole npz file of plain arrays .*pickle"),
    ],
)
def test_another_dsprites_is_told_and_leaves_nothing(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    write_dsprites(tmp_path, 12, **changes)
    with pytest.raises(UserError, match=told) as caught:
        open_split("dsprites", tmp_path, "train", (1, 64, 64))
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".blocks", ".npy", ".json")]


def test_a_damaged_dsprites_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    write_dsprites(tmp_path, 12)
    (path,) = tmp_path.rglob("*.npz")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = archive.getinfo("imgs.npy").header_offset + 3000
    damaged = [truncated(content, share) for share in (0.0, 0.5, 0.99)]
    damaged.append(content[:inside] + bytes(40) + content[inside + 40 :])
    for one in damaged:
        path.write_bytes(one)
        with pytest.raises(UserError, match=r"npz of [\d,]+ bytes is not a whole dSprites file .*: download it again"):
            open_split("dsprites", tmp_path, "train", (1, 64, 64))
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".blocks", ".npy", ".json")]


def test_a_header_that_claims_more_images_than_there_are_allocates_nothing(tmp_path: Path) -> None:
    write_dsprites(tmp_path, 12)
    (path,) = tmp_path.rglob("*.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for claim in (b"(700000, 64, 64), } ", b"(13, 64, 64), }     ", b"(10**9, 64, 64), }  "):
        head = re.sub(rb"\(12, 64, 64\), \}\s{2,}?", claim, members["imgs.npy"], count=1)[: len(members["imgs.npy"])]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | {"imgs.npy": head}).items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match="not a whole dSprites file"):
            open_split("dsprites", tmp_path, "train", (1, 64, 64))
        assert not (path.parent / store.FOLDER).exists()


def test_the_pickled_note_of_dsprites_is_never_touched(tmp_path: Path) -> None:
    write_dsprites(tmp_path, 12, metadata=np.array([Trap(tmp_path / "sprung")], dtype=object))
    assert len(open_split("dsprites", tmp_path, "train", (1, 64, 64))) == 12
    assert not (tmp_path / "sprung").exists()


def test_absent_dsprites_says_where_it_is_published_and_how_to_draw_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"or40x32y32_64x64.npz: download it from .*dsprites-dataset.*render sprites"):
        open_split("dsprites", tmp_path, "train", (1, 64, 64))
