"""Image sets that are absent, damaged, hostile or of another kind end a command with one sentence and leave nothing."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from image_files import (
    bomb,
    chairs,
    idx_files,
    photograph,
    truncated,
    write_celeba,
    write_dsprites,
    write_folder,
    write_renders,
    write_svhn,
    write_tar,
    write_zip,
)
from scipy.io import savemat
from test_bad_input import assert_told

from fastinfogan import checkpoint, train
from fastinfogan.data import dsprites, open_split, shards
from fastinfogan.data.celeba import open_celeba
from fastinfogan.data.folder import open_folder
from fastinfogan.data.renders import open_faces
from fastinfogan.errors import UserError

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without --run-dir go below the test's folder."""
    monkeypatch.chdir(tmp_path)


def assert_nothing_trained(folder: Path) -> None:
    assert not [*folder.rglob("*.safetensors"), *folder.rglob("*.partial"), *folder.rglob("metrics.jsonl")]
    assert not [*folder.rglob("*.part"), *folder.rglob("*.blocks"), *folder.rglob(".fastinfogan/*.npy")]


def damaged_set(root: Path) -> list[str]:
    return ["--dataset", "fashion-mnist", "--data", str(root)]


def without_files(root: Path) -> list[str]:
    files = idx_files(9)
    del files["t10k-labels-idx1-ubyte"], files["train-labels-idx1-ubyte"]
    write_folder(root / "fashion-mnist", files)
    return damaged_set(root)


def with_another_magic(root: Path) -> list[str]:
    files = idx_files(9)
    files["train-images-idx3-ubyte"] = b"<html>" + files["train-images-idx3-ubyte"][6:]
    write_folder(root / "fashion-mnist", files)
    return damaged_set(root)


def half_downloaded(root: Path) -> list[str]:
    files = idx_files(9)
    files["train-images-idx3-ubyte"] = truncated(files["train-images-idx3-ubyte"])
    write_folder(root / "fashion-mnist", files)
    return damaged_set(root)


def half_a_zip(root: Path) -> list[str]:
    path = write_zip(root / "photos.zip", {f"{i}.jpg": photograph(i, 40, 40) for i in range(9)})
    path.write_bytes(truncated(path.read_bytes()))
    return ["--dataset", "folder", "--data", str(path)]


def no_folder(root: Path) -> list[str]:
    return ["--dataset", "folder", "--data", str(root / "photos")]


def empty_folder(root: Path) -> list[str]:
    (root / "photos").mkdir()
    (root / "photos" / "notes.txt").write_text("no image")
    return ["--dataset", "folder", "--data", str(root / "photos")]


def colour_photos(root: Path) -> list[str]:
    write_folder(root / "photos", {f"{i}.jpg": photograph(i, 40, 40) for i in range(9)})
    return ["--dataset", "folder", "--data", str(root / "photos"), "--tables", "mnist"]


def half_an_svhn(root: Path) -> list[str]:
    write_svhn(root, 9)
    path = root / "svhn" / "train_32x32.mat"
    path.write_bytes(truncated(path.read_bytes()))
    return ["--dataset", "svhn", "--data", str(root)]


def of(dataset: str, root: Path) -> list[str]:
    return ["--dataset", dataset, "--data", str(root)]


def zip_that_leads_out(root: Path) -> list[str]:
    path = write_zip(root / "photos.zip", {"0.jpg": photograph(0), "../../1.jpg": photograph(1)})
    return of("folder", path)


def half_the_chairs(root: Path) -> list[str]:
    path = write_tar(root / "chairs" / "rendered_chairs.tar", chairs(1))
    path.write_bytes(truncated(path.read_bytes(), 0.1))
    return of("chairs", root)


def celeba_without_the_line(root: Path, name: str, start: str) -> list[str]:
    write_celeba(root, 5)
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg 0\n" for i in range(1, 6)))
    path = root / "celeba" / name
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(start)))
    return of("celeba", root)


def without_an_attribute_line(root: Path) -> list[str]:
    return celeba_without_the_line(root, "list_attr_celeba.txt", "000003.jpg")


def without_a_partition_line(root: Path) -> list[str]:
    return celeba_without_the_line(root, "list_eval_partition.txt", "000004.jpg")


def without_the_attribute_count(root: Path) -> list[str]:
    return celeba_without_the_line(root, "list_attr_celeba.txt", "5")


def dsprites_of_pickles(root: Path) -> list[str]:
    write_dsprites(root, 9, imgs=np.array([{"a": 1}] * 9, dtype=object))
    return of("dsprites", root)


def more_sprites_than_classes(root: Path) -> list[str]:
    write_dsprites(root, 9, latents_classes=np.zeros((8, 6), np.int64))
    return of("dsprites", root)


def more_faces_than_factors(root: Path) -> list[str]:
    write_renders(root / "faces", 9, values=np.zeros((8, 3), np.float32))
    return of("faces", root)


def faces_of_another_size(root: Path) -> list[str]:
    write_renders(root / "faces", 9, 64)
    return of("faces", root)


def shards_that_stopped(root: Path) -> list[str]:
    write_folder(root / "photos", {f"{i}.jpg": photograph(i, 40, 40) for i in range(9)})
    shards.write_shards(open_folder(root / "photos", "train"), root / "shards", "train", progress=False)
    manifest = root / "shards" / "train" / "shards.json"
    manifest.write_text(manifest.read_text().replace("true", "false"))
    return of("folder", root / "shards")


def without_any_image(root: Path) -> list[str]:
    write_folder(root / "fashion-mnist", idx_files(0))
    return damaged_set(root)


def with_sizes_beyond_any_memory(root: Path) -> list[str]:
    files = idx_files(9)
    sizes = struct.pack(">3I", 1 << 31, 1 << 31, 4)  # whose product, in 64 bits, is 0
    files["train-images-idx3-ubyte"] = files["train-images-idx3-ubyte"][:4] + sizes
    write_folder(root / "fashion-mnist", files)
    return damaged_set(root)


def svhn_of(root: Path, labels: list[float]) -> list[str]:
    (root / "svhn").mkdir(parents=True)
    content = {"X": np.zeros((32, 32, 3, len(labels)), np.uint8), "y": np.array(labels).reshape(-1, 1)}
    savemat(root / "svhn" / "train_32x32.mat", content)
    return of("svhn", root)


def half_a_label(root: Path) -> list[str]:
    return svhn_of(root, [1, 2, 1.5])


def an_svhn_of_nothing(root: Path) -> list[str]:
    return svhn_of(root, [])


def a_zip_that_is_called_an_array(root: Path) -> list[str]:
    write_renders(root / "faces", 9)
    with (root / "faces" / "images.npy").open("wb") as file:
        np.savez(file, images=np.zeros(3))
    return of("faces", root)


def a_number_of_five_thousand_digits(root: Path) -> list[str]:
    write_celeba(root, 9, zipped=True)
    write_zip(root / "celeba" / "img_align_celeba.zip", {f"img_align_celeba/{'1' * 5000}.jpg": photograph(1)})
    return of("celeba", root)


SETS: list[tuple[Callable[[Path], list[str]], tuple[str, ...]]] = [
    (lambda root: ["--dataset", "celeba", "--data", str(root)],
     ("CelebA is absent", "img_align_celeba.zip", "--dataset mnist")),
    (lambda root: ["--dataset", "svhn", "--data", str(root)], ("train_32x32.mat", "download", "--dataset mnist")),
    (without_files, ("train-labels-idx1-ubyte", "put all four files there")),
    (with_another_magic, ("train-images-idx3-ubyte", "starts with bytes 3c68746d", "delete it and fetch it again")),
    (half_downloaded, ("train-images-idx3-ubyte holds 2,828 bytes, expected 7,072", "delete it and fetch it again")),
    (half_a_zip, ("photos.zip", "is not a whole zip file", "download it again")),
    (half_an_svhn, ("train_32x32.mat", "is not a whole SVHN file", "download it again")),
    (zip_that_leads_out, ("photos.zip holds a file named '../../1.jpg'", "leads out", "get it from where it is")),
    (half_the_chairs, ("rendered_chairs.tar of", "is not a whole tar file", "download it again")),
    (without_an_attribute_line, ("list_attr_celeba.txt", "has no line for 000003.jpg", "download it again")),
    (without_a_partition_line, ("list_eval_partition.txt has no line for 000004.jpg", "download it again")),
    (without_the_attribute_count, ("list_attr_celeba.txt", "download it again")),
    (dsprites_of_pickles, ("npz of", "imgs are object, expected uint8", "download it again")),
    (more_sprites_than_classes, ("9 imgs and latents_classes int64 [8, 6]", "download it again")),
    (more_faces_than_factors, ("factors.npz describes 8 images but 9 lie beside it", "or delete factors.npz")),
    (faces_of_another_size, ("faces holds 64x64x1 images", "faces networks take 32x32x1", "choose --tables chairs")),
    (shards_that_stopped, ("shards in", "are not complete", "run the same `prepare` again")),
    (without_any_image, ("holds no images of fashion-mnist", "put all four files there")),
    (with_sizes_beyond_any_memory, ("train-images-idx3-ubyte holds 16 bytes, expected 18,4", "fetch it again")),
    (half_a_label, ("train_32x32.mat holds the label 1.5, expected whole numbers", "download it again")),
    (an_svhn_of_nothing, ("train_32x32.mat holds no images", "download it again")),
    (a_zip_that_is_called_an_array, ("images.npy of", "is not a whole array of images", "render again")),
    (a_number_of_five_thousand_digits, ("list_attr_celeba.txt", "has no line for 1111")),
    (no_folder, ("photos", "give one with --data")),
    (empty_folder, ("photos", "holds no .jpg", "--data")),
    (colour_photos, ("expected 1-channel images for the mnist networks, got 3 channels in", "0.jpg", "pass --gray")),
]  # fmt: skip


@pytest.mark.parametrize(("make", "parts"), SETS, ids=["no celeba", "no svhn", *(m.__name__ for m, _ in SETS[2:])])
def test_a_set_that_is_absent_damaged_or_does_not_fit_is_one_sentence_before_any_work(
    tmp_path: Path, command: Command, make: Callable[[Path], list[str]], parts: tuple[str, ...]
) -> None:
    flags = make(tmp_path)
    ended = command(train, *flags, "--batch", "4", "--iterations", "1", "--device", "cpu")
    assert_told(ended, *parts)
    assert ended.err.count("\n") == 1
    assert_nothing_trained(tmp_path)


def open_svhn(root: Path) -> object:
    return open_split("svhn", root, "train", (3, 32, 32))


FORMATS: list[tuple[Callable[[Path], object], str, Callable[[Path], object]]] = [
    (lambda root: write_svhn(root, 3), "svhn/train_32x32.mat", open_svhn),
    (lambda root: write_dsprites(root, 3), f"dsprites/{dsprites.FILE}",
     lambda root: open_split("dsprites", root, "train", (1, 64, 64))),
    (lambda root: write_renders(root / "faces", 3), "faces/factors.npz", lambda root: open_faces(root, "train")),
    (lambda root: write_renders(root / "faces", 3), "faces/images.npy", lambda root: open_faces(root, "train")),
    (lambda root: write_zip(root / "a.zip", {"a.jpg": b"a", "b.jpg": b"b"}), "a.zip",
     lambda root: open_folder(root / "a.zip", "train")),
    (lambda root: write_tar(root / "a.tar", {"a.jpg": b"a", "b.jpg": b"b"}), "a.tar",
     lambda root: open_folder(root / "a.tar", "train")),
    (lambda root: write_celeba(root, 3), "celeba/list_attr_celeba.txt", lambda root: open_celeba(root, "train")),
]  # fmt: skip


@pytest.mark.parametrize(("make", "name", "open_it"), FORMATS, ids=[name for _, name, _ in FORMATS])
def test_whatever_is_wrong_with_a_file_is_a_sentence_or_harmless(
    tmp_path: Path, make: Callable[[Path], object], name: str, open_it: Callable[[Path], object]
) -> None:
    make(tmp_path)
    path, rng, told = tmp_path / name, np.random.default_rng(0), 0
    content = path.read_bytes()
    for attempt in range(40):
        damaged = bytearray(content)
        for _ in range(1 + attempt % 3):  # in its header as often as anywhere
            damaged[rng.integers(len(content) if attempt % 2 else min(400, len(content)))] = rng.integers(256)
        path.write_bytes(truncated(bytes(damaged), rng.random()) if attempt % 5 == 0 else damaged)
        try:
            open_it(tmp_path)
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > 5
    path.write_bytes(content)
    assert open_it(tmp_path)


@pytest.fixture
def damaged_photos(tmp_path: Path) -> Path:
    """Twenty photographs of which three are none."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = {f"{i:02d}.jpg": photograph(i, 40, 36) for i in range(20)}
    files |= {"04.jpg": b"", "11.jpg": b"not an image", "17.jpg": truncated(files["17.jpg"], 0.1)}
    return write_folder(tmp_path / "photos", files)


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_more_undecodable_images_than_the_limit_stop_the_run_by_name(
    tmp_path: Path, damaged_photos: Path, command: Command, placement: str
) -> None:
    flags = [
        "--dataset",
        "folder",
        "--data",
        damaged_photos,
        "--placement",
        placement,
        "--batch",
        "6",
        "--device",
        "cpu",
    ]
    ended = command(train, *flags, "--reject-limit", "0.1", "--iterations", "9", "--codes", "cat:3", "--noise", "2")
    assert_told(ended, "3 of 20 files of folder cannot be decoded, at most 2", "raise --reject-limit", ".jpg")
    for name in ("04.jpg", "11.jpg", "17.jpg"):
        assert f"rejected {damaged_photos}/{name}: " in ended.err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_undecodable_images_within_the_limit_are_named_and_skipped(
    tmp_path: Path, damaged_photos: Path, command: Command
) -> None:
    flags = ["--dataset", "folder", "--data", damaged_photos, "--batch", "6", "--device", "cpu", "--run-dir", "run"]
    ended = command(train, *flags, "--reject-limit", "0.15", "--iterations", "3", "--codes", "cat:3", "--noise", "2")
    assert ended.code == 0 and ended.err.count("rejected ") == 3
    assert checkpoint.load(tmp_path / "run").step == 3


@pytest.fixture
def hostile_photos(tmp_path: Path) -> Path:
    """Thirty photographs of which one is a bomb and one is of another kind than its name says."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = {f"{i:02d}.jpg": photograph(i, 40, 36) for i in range(30)}
    files |= {"04.jpg": bomb(kind="JPEG"), "11.jpg": photograph(11, kind="PNG"), "17.png": bomb()}
    return write_folder(tmp_path / "photos", files)


HOSTILE = (
    "04.jpg: its header says 50,000 x 50,000 pixels, more than 16,384 a side or 67,108,864 in all: scale it down",
    "11.jpg: a PNG file named .jpg: rename it, or convert it to JPEG",
    "17.png: its header says 50,000 x 50,000 pixels",
)


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_hostile_pictures_beyond_the_limit_stop_the_run_by_name_and_leave_nothing(
    tmp_path: Path, hostile_photos: Path, command: Command, placement: str
) -> None:
    flags = [*of("folder", hostile_photos), "--placement", placement, "--batch", "6", "--device", "cpu"]
    ended = command(train, *flags, "--iterations", "9", "--codes", "cat:3", "--noise", "2")
    assert_told(ended, "2 of 31 files of folder cannot be decoded, at most 1", "repair or delete the files", ".")
    assert sum(told in ended.err for told in HOSTILE) == 2
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".part", ".blocks", ".npy")]


def test_hostile_pictures_within_the_limit_are_named_and_skipped(
    tmp_path: Path, hostile_photos: Path, command: Command
) -> None:
    flags = [*of("folder", hostile_photos), "--batch", "6", "--device", "cpu", "--run-dir", "run"]
    ended = command(train, *flags, "--reject-limit", "0.1", "--iterations", "2", "--codes", "cat:3", "--noise", "2")
    assert ended.code == 0 and ended.err.count("rejected ") == 3
    assert all(f"rejected {hostile_photos}/{told}" in ended.err for told in HOSTILE)
    assert checkpoint.load(tmp_path / "run").step == 2


def test_a_damaged_zip_member_is_a_rejected_image_not_a_crash(tmp_path: Path, command: Command) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    path = write_zip(tmp_path / "photos.zip", {f"{i:02d}.jpg": photograph(i, 40, 40) for i in range(12)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("05.jpg").header_offset
    content[start + 200] ^= 0xFF
    path.write_bytes(content)
    flags = ["--dataset", "folder", "--data", path, "--batch", "4", "--iterations", "2", "--device", "cpu"]
    ended = command(train, *flags, "--codes", "cat:2", "--noise", "2", "--run-dir", "run")
    assert ended.code == 0 and "rejected" in ended.err and "05.jpg" in ended.err
