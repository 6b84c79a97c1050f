"""``python -m fastinfogan.data`` and ``bench/data.py``, run as a user runs them."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import idx_files, photograph, write_folder
from PIL import Image

from fastinfogan.commands import run_command
from fastinfogan.data import __main__ as command
from fastinfogan.data import mnist

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
    run_command(command.main)


def test_fetch_and_check_of_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = idx_files(30)
    monkeypatch.setattr(mnist, "MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    write_folder(tmp_path, files)
    run(monkeypatch, "fetch", "mnist", "--data", tmp_path)
    assert capsys.readouterr().out == f"mnist: 30 training images in {tmp_path}\n"
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "check", "mnist", "--data", tmp_path)
    said = capsys.readouterr().out
    assert "mnist train: 30 images of 28x28x1, 23,520 bytes" in said and "rejected: 0 of 30" in said
    pixels = files["train-images-idx3-ubyte"][16:]
    assert f"mean {sum(pixels) / len(pixels) / 255:.4f}, from 0.0000 to 1.0000 of [0, 1]" in said
    labels = files["train-labels-idx1-ubyte"][8:]
    assert f" 3:{labels.count(3)} " in said
    assert Image.open(tmp_path / "mnist-train.png").width == 10 * Image.open(tmp_path / "mnist-train.png").height // 3


def test_check_lists_every_rejected_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = {f"{i}.jpg": photograph(i) for i in range(6)} | {"2.jpg": b"damaged", "4.jpg": b""}
    write_folder(tmp_path / "photos", files)
    sheet = tmp_path / "sheets" / "photos.png"
    run(monkeypatch, "check", "folder", "--data", tmp_path / "photos", "--gray", "--tables", "mnist", "--sheet", sheet)
    said = capsys.readouterr().out
    assert "folder train: 4 images of 28x28x1" in said and "rejected: 2 of 6" in said
    assert (
        f"  {tmp_path}/photos/2.jpg: not an image" in said and f"  {tmp_path}/photos/4.jpg: the file is empty" in said
    )
    assert f"contact sheet: {sheet}" in said and sheet.is_file()


def test_what_the_user_can_mend_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "fetch", "celeba", "--data", tmp_path)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: CelebA is absent") and said.count("\n") == 1


def test_the_benchmark_writes_a_row_for_each_provider(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    out = tmp_path / "data.csv"
    options = ["--images", "64", "--batch", "16", "--rounds", "2", "--device", "cpu", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "bench.data", *options], cwd=ROOT, check=True, timeout=120)
    rows = list(csv.DictReader(out.open()))
    assert [row["provider"] for row in rows] == ["pil-dataloader", "dali-stream", "dali-store", "resident-uint8"]
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"])
        assert (row["unit"], row["metric"]) == ("images/s", "throughput")
        assert row["cores"] and row["nvidia-dali-cuda130"]
