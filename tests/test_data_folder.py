"""Folders and zips of images: what is listed, which split it belongs to, and what is said when it does not fit."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from image_files import ATTRIBUTES, idx_files, photograph, truncated, write_celeba, write_folder, write_zip
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fastinfogan.data import Encoded, mnist, open_split
from fastinfogan.data.celeba import celeba_attributes, open_celeba
from fastinfogan.data.folder import open_folder
from fastinfogan.errors import UserError

CLUTTER = {
    "notes.txt": b"no image",
    ".hidden.jpg": b"",
    ".trash/1.jpg": b"",
    "__MACOSX/._b.JPG": b"",
}
PICTURES = {"b.JPG": b"b", "a/2.png": b"2", "a/10.jpeg": b"10"}


def contents(encoded: Encoded) -> list[bytes]:
    return [encoded.read(i) for i in range(len(encoded))]


def test_a_folder_lists_its_images_sorted_and_nothing_else(tmp_path: Path) -> None:
    opened = open_folder(write_folder(tmp_path, CLUTTER | PICTURES), "train")
    assert opened.names == tuple(f"{tmp_path}/{name}" for name in ("a/10.jpeg", "a/2.png", "b.JPG"))
    assert contents(opened) == [b"10", b"2", b"b"]


def test_a_zip_is_the_folder_it_was_made_from(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "photos", CLUTTER | PICTURES), "train")
    zipped = open_folder(write_zip(tmp_path / "photos.zip", CLUTTER | PICTURES), "train")
    assert [Path(name).name for name in zipped.names] == [Path(name).name for name in folder.names]
    assert contents(zipped) == contents(folder)
    assert zipped.home == tmp_path and folder.home == tmp_path / "photos"


def test_a_zip_is_read_from_threads_and_forked_processes_at_once(tmp_path: Path) -> None:
    files = {f"{i:02d}.png": os.urandom(20_000) for i in range(50)}
    zipped = open_folder(write_zip(tmp_path / "photos.zip", files), "train")
    expected = contents(zipped)
    right: list[bool] = []
    threads = [threading.Thread(target=lambda: right.append(contents(zipped) == expected)) for _ in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        os._exit(contents(zipped) != expected)
    for thread in threads:
        thread.join()
    assert right == [True] * 4
    assert os.waitpid(child, 0)[1] == 0


def test_subfolders_train_and_test_are_the_splits_where_both_exist(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train/1.png": b"1"})
    assert len(open_folder(tmp_path, "test")) == 1  # without test, either split is everything
    write_folder(tmp_path, {"test/2.png": b"2"})
    assert contents(open_folder(tmp_path, "train")) == [b"1"]
    assert contents(open_folder(tmp_path, "test")) == [b"2"]


def test_a_place_without_images_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no .jpg, .jpeg, .png file"):
        open_folder(write_folder(tmp_path, CLUTTER), "train")
    with pytest.raises(UserError, match=r"expected a folder, a zip or a tar of images, got .*absent: give one"):
        open_folder(tmp_path / "absent", "train")


def test_a_half_downloaded_zip_has_its_own_sentence(tmp_path: Path) -> None:
    write_celeba(tmp_path, 3, zipped=True)
    path = tmp_path / "celeba" / "img_align_celeba.zip"
    path.write_bytes(truncated(path.read_bytes(), 0.5))
    with pytest.raises(UserError, match=r"img_align_celeba.zip of [\d,]+ bytes is not a whole zip file .*download it"):
        open_celeba(tmp_path, "train")


def test_a_damaged_member_of_a_zip_is_an_error_of_that_file_alone(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "photos.zip", {"a.png": b"first content", "b.png": b"second content"})
    path.write_bytes(path.read_bytes().replace(b"first content", b"f1rst content"))
    zipped = open_folder(path, "train")
    with pytest.raises(OSError, match="CRC"):
        zipped.read(0)
    assert zipped.read(1) == b"second content"


def test_the_fingerprint_changes_with_any_file_and_not_with_the_place(tmp_path: Path) -> None:
    zips = [write_zip(tmp_path / place / "photos.zip", PICTURES) for place in ("here", "there")]
    here, there = (open_folder(path, "train").fingerprint for path in zips)
    changed = open_folder(write_zip(zips[0], PICTURES | {"b.JPG": b"B"}), "train").fingerprint
    assert here == there != changed


def test_celeba_is_split_by_the_published_numbers_or_the_partition_beside_it(tmp_path: Path) -> None:
    names = ["000001.jpg", "182637.jpg", "182638.jpg", "202599.jpg"]
    write_folder(tmp_path / "celeba" / "img_align_celeba", {name: name.encode() for name in names})
    assert contents(open_celeba(tmp_path, "train")) == [name.encode() for name in names[:2]]
    assert contents(open_celeba(tmp_path, "test")) == [name.encode() for name in names[2:]]
    partition = "".join(f"{name} {part}\n" for name, part in zip(names, (2, 1, 0, 0), strict=True))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(partition)
    assert contents(open_celeba(tmp_path, "test")) == [names[0].encode()]


def test_celeba_of_a_name_that_is_no_number_and_of_a_list_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "celeba" / "img_align_celeba", {"3\u00b2.jpg": b"3"})  # a digit to str, no number to int
    assert contents(open_celeba(tmp_path, "train")) == [b"3"]
    lists = write_folder(tmp_path / "celeba", {"list_eval_partition.txt": b""})

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError, match=rf"cannot read {lists}/list_eval_partition.txt \(Permission denied\)"):
        open_celeba(tmp_path, "train")


def test_celeba_without_the_split_says_so(tmp_path: Path) -> None:
    write_celeba(tmp_path, 3)
    with pytest.raises(UserError, match=r"none of the 3 images in .* is in CelebA's test split"):
        open_celeba(tmp_path, "test")


def test_celeba_zipped_is_celeba_in_a_folder(tmp_path: Path) -> None:
    write_celeba(tmp_path / "folder", 4)
    write_celeba(tmp_path / "zip", 4, zipped=True)
    folder, zipped = (open_celeba(tmp_path / kind, "train") for kind in ("folder", "zip"))
    assert contents(folder) == contents(zipped) and folder.crop == zipped.crop == 148


def test_absent_celeba_says_what_where_how_and_what_else(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_split("celeba", tmp_path, "train", (3, 32, 32))
    message = str(caught.value)
    for expected in (
        f"{tmp_path}/celeba/img_align_celeba,",
        f"{tmp_path}/img_align_celeba.zip",
        "list_attr_celeba.txt",
        "Align&Cropped Images",
        "CelebA project page",
        "python -m fastinfogan.train --dataset mnist --amp",
    ):
        assert expected in message
    assert "\n" not in message


def test_celeba_attributes_follow_the_names_asked_for(tmp_path: Path) -> None:
    write_celeba(tmp_path, 5)
    path = tmp_path / "celeba" / "list_attr_celeba.txt"
    attributes, values = celeba_attributes(path, ["img_align_celeba/000004.jpg", "000002.jpg"])
    lines = path.read_text().splitlines()
    assert attributes == ATTRIBUTES and values.dtype == np.int8 and values.shape == (2, 40)
    assert values.tolist() == [[int(mark) for mark in lines[i].split()[1:]] for i in (5, 3)]


def test_celeba_attributes_name_the_line_at_fault(tmp_path: Path) -> None:
    write_celeba(tmp_path, 5)
    path = tmp_path / "celeba" / "list_attr_celeba.txt"
    with pytest.raises(UserError, match=r"5 images but has no line for 000009.jpg \(1 of 2 lack one\)"):
        celeba_attributes(path, ["000001.jpg", "000009.jpg"])
    path.write_text(path.read_text().rsplit(maxsplit=1)[0])
    with pytest.raises(UserError, match=r"line 7 \(000005.jpg\) holds 39 values, expected 40 of -1 or 1"):
        celeba_attributes(path, ["000001.jpg"])
    path.write_text("")
    with pytest.raises(UserError, match=r"0 images but has no line for 000001.jpg"):
        celeba_attributes(path, ["000001.jpg"])
    path.unlink()
    with pytest.raises(UserError, match=f"expected {path}: download"):
        celeba_attributes(path, ["000001.jpg"])


def test_colour_files_for_grey_networks_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"0000.jpg": photograph(0, mode="L"), "0001.jpg": photograph(1), "0002.jpg": b"damaged"}
    write_folder(tmp_path / "photos", files)
    with pytest.raises(UserError) as caught:
        open_split("folder", Path("photos"), "train", (1, 28, 28), tables="mnist")
    assert str(caught.value) == (
        "expected 1-channel images for the mnist networks, got 3 channels in photos/0001.jpg: pass --gray, or choose "
        "--tables celeba"
    )
    assert len(open_split("folder", Path("photos"), "train", (1, 28, 28), gray=True)) == 3
    assert len(open_split("folder", Path("photos"), "train", (3, 32, 32))) == 3


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_files_fit_grey_networks(tmp_path: Path, mode: str) -> None:
    write_folder(tmp_path, {"0.png": photograph(0, mode=mode, kind="PNG"), "1.png": b"damaged"})
    assert len(open_split("folder", tmp_path, "train", (1, 28, 28))) == 2


def test_a_picture_whose_text_is_too_large_for_pil_is_the_decoders_to_judge(tmp_path: Path) -> None:
    note = PngInfo()
    note.add_text("comment", "0" * (3 << 20), zip=True)
    Image.new("L", (40, 40)).save(tmp_path / "0.png", pnginfo=note)
    assert len(open_split("folder", tmp_path, "train", (1, 28, 28))) == 1


def test_what_does_not_fit_the_networks_is_told_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "fetch", lambda root: (write_folder(root, idx_files(2)), {}))
    with pytest.raises(UserError) as caught:
        open_split("mnist", tmp_path, "train", (3, 32, 32), tables="celeba")
    assert str(caught.value) == (
        "mnist holds 28x28x1 images but the celeba networks take 32x32x3: choose --tables mnist"
    )
    with pytest.raises(UserError, match="--gray gives 1-channel images but the celeba networks take 3: give --no-gray"):
        open_split("folder", tmp_path, "train", (3, 32, 32), gray=True, tables="celeba")
    with pytest.raises(UserError, match="the odd networks take 32x24 images, expected a square"):
        open_split("folder", tmp_path, "train", (3, 32, 24), tables="odd")
    with pytest.raises(UserError, match="unknown dataset 'cifar': choose one of mnist, fashion-mnist, svhn, celeba"):
        open_split("cifar", tmp_path, "train", (3, 32, 32))
