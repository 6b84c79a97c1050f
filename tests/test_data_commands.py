"""``python -m fastinfogan.data`` and ``bench/data.py``, run as a user runs them."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import chairs, idx_files, photograph, write_celeba, write_folder, write_renders, write_svhn, write_tar
from PIL import Image

from fastinfogan.commands import run_command
from fastinfogan.config import PRESETS, preset
from fastinfogan.data import __main__ as command
from fastinfogan.data import decode, mnist, store
from fastinfogan.data.decode import Decoder
from fastinfogan.data.render import NAMES

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


def test_a_folder_that_is_not_given_is_not_the_one_of_all_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "data", {"0.jpg": photograph(0)})
    monkeypatch.chdir(tmp_path)
    for action in ("fetch", "check", "prepare"):
        with pytest.raises(SystemExit):
            run(monkeypatch, action, "folder")
        told = capsys.readouterr().err
        assert f"expected a folder, a zip or a tar of images, got {tmp_path}/images: give one with --data" in told
    assert preset("folder").data == Path("images")
    assert {preset(name).data for name in PRESETS if name != "folder"} == {Path("data")}


def test_a_contact_sheet_is_no_image_of_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "photos", {f"{i}.jpg": photograph(i) for i in range(3)})
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        run(monkeypatch, "check", "folder", "--data", ".")
    assert (
        f"{folder}/folder-train.png would be one of the images of .: give --sheet elsewhere" in capsys.readouterr().err
    )
    (folder / "contact.png").write_bytes(photograph(3, kind="PNG"))
    run(monkeypatch, "fetch", "folder", "--data", folder)
    assert "folder: 4 training images" in capsys.readouterr().out  # a user's own
    (folder / "render.json").write_text("{}")
    run(monkeypatch, "fetch", "folder", "--data", folder)
    assert "folder: 3 training images" in capsys.readouterr().out


def test_a_share_that_is_none_is_told_by_prepare_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in ("nan", "-1", "7"):
        with pytest.raises(SystemExit):
            run(monkeypatch, "prepare", "folder", "--data", tmp_path, "--reject-limit", limit)
        assert f"--reject-limit is a share from 0 to 1, got {float(limit)}" in capsys.readouterr().err


def test_ctrl_c_while_dali_is_loaded_is_not_taken_for_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("nvidia.dali"):  # as pybind11 tells what a module's initialisation raised
                raise ImportError("initialization failed") from KeyboardInterrupt()

    for name in [name for name in sys.modules if name.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        decode._dali()


def test_check_lists_a_rejected_file_whose_name_is_not_utf_8_and_a_link_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    folder = write_folder(tmp_path / "photos", {f"{i}.jpg": photograph(i) for i in range(4)})
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"damaged")
    (folder / "link.jpg").symlink_to("missing")
    for _ in range(2):  # decoded, then found again
        run(monkeypatch, "check", "folder", "--data", folder, "--sheet", tmp_path / "sheet.png")
        said = capsys.readouterr()
        assert "rejected: 2 of 6" in said.out and f"  {folder}/caf\\udce9.jpg: not an image" in said.out
        assert f"  {folder}/link.jpg: [Errno 2] No such file" in said.out
    assert "decoding" not in said.err and "made anew" not in said.err


def test_check_tells_sizes_factors_and_what_the_preset_makes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write_tar(tmp_path / "chairs" / "rendered_chairs.tar", chairs(2))
    run(monkeypatch, "check", "chairs", "--data", tmp_path, "--sheet", tmp_path / "chairs.png")
    said = capsys.readouterr().out
    assert "chairs train: 8 images of 64x64x1" in said and "sizes of the files: 8 of 600x600" in said
    assert "factor azimuth: circular, from 0 to 348 of [0, 360], 3 values" in said
    assert "factor model: categorical, from 0 to 1 of [0, 1], 2 values" in said
    write_renders(tmp_path / "faces", 6)
    run(monkeypatch, "check", "faces", "--data", tmp_path, "--sheet", tmp_path / "faces.png")
    said = capsys.readouterr().out
    assert "faces train: 6 images of 32x32x1" in said and "factor style: categorical, from 0 to 1" in said
    with pytest.raises(SystemExit):
        run(monkeypatch, "check", "faces", "--data", tmp_path, "--tables", "chairs")
    told = "faces holds 32x32x1 images but the chairs networks take 64x64x1: choose --tables faces"
    assert told in capsys.readouterr().err


def test_prepare_decodes_once_and_mends_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write_celeba(tmp_path, 4, zipped=True)
    home = tmp_path / "celeba" / ".fastinfogan"
    run(monkeypatch, "prepare", "celeba", "--data", tmp_path)
    assert capsys.readouterr().out == f"celeba train: 4 images of 32x32x3 in {home}, 0 rejected\n"
    (path,) = home.glob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-7] + b"damaged")
    run(monkeypatch, "prepare", "celeba", "--data", tmp_path)
    assert "is damaged and is made anew" in capsys.readouterr().err and path.read_bytes() == content
    monkeypatch.setattr(Decoder, "at", lambda *_: pytest.fail("decoded again"))
    run(monkeypatch, "check", "celeba", "--data", tmp_path, "--sheet", tmp_path / "sheet.png")
    assert "rejected: 0 of 4" in capsys.readouterr().out


def test_prepare_writes_shards_that_check_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write_celeba(tmp_path, 4)
    out = tmp_path / "shards"
    run(monkeypatch, "prepare", "celeba", "--data", tmp_path, "--shards", out, "--shard-mib", 1)
    told = f"celeba train: 4 images in {out}/celeba/train; train with --data {out}\n"
    assert capsys.readouterr().out == told
    run(monkeypatch, "check", "celeba", "--data", out, "--sheet", tmp_path / "sheet.png")
    said = capsys.readouterr().out
    assert "celeba train: 4 images of 32x32x3" in said and "factor Attribute_0: categorical" in said


def test_prepare_goes_on_with_shards_that_lie_beside_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_celeba(tmp_path, 4)
    again = ("prepare", "celeba", "--data", tmp_path, "--shards", tmp_path, "--shard-mib", 1)
    run(monkeypatch, *again)
    manifest = tmp_path / "celeba" / "train" / "shards.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"complete": true', '"complete": false'))
    with pytest.raises(SystemExit):
        run(monkeypatch, "check", "celeba", "--data", tmp_path, "--sheet", tmp_path / "sheet.png")
    assert "are not complete: run the same `prepare` again" in capsys.readouterr().err
    run(monkeypatch, *again)
    assert manifest.read_text() == whole


def test_shards_alone_can_be_sharded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_celeba(tmp_path, 4)
    first, second = tmp_path / "first", tmp_path / "second"
    run(monkeypatch, "prepare", "celeba", "--data", tmp_path, "--shards", first)
    run(monkeypatch, "prepare", "celeba", "--data", first, "--shards", second)
    assert f"celeba train: 4 images in {second}/celeba/train" in capsys.readouterr().out


def test_the_sheet_of_a_check_does_not_become_an_image_of_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_celeba(tmp_path, 4)
    images = tmp_path / "celeba" / "img_align_celeba"
    with pytest.raises(SystemExit):
        run(monkeypatch, "check", "celeba", "--data", tmp_path, "--sheet", images / "sheet.png")
    assert "would be one of the images" in capsys.readouterr().err and len(list(images.iterdir())) == 4


def test_prepare_tells_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_svhn(tmp_path, 4)
    run(monkeypatch, "prepare", "svhn", "--data", tmp_path, "--shards", tmp_path / "shards")
    assert capsys.readouterr().out == "svhn train: 4 images are published decoded, there is nothing to shard\n"
    write_celeba(tmp_path, 4)
    with pytest.raises(SystemExit):
        run(monkeypatch, "prepare", "celeba", "--data", tmp_path, "--shards", tmp_path / "shards", "--shard-mib", 0)
    assert "--shard-mib must be 1 or more, got 0" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_prepare_does_not_claim_what_no_disk_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write_folder(tmp_path, {f"{i}.jpg": photograph(i) for i in range(6)})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "allocate", full)
    with pytest.raises(SystemExit):
        run(monkeypatch, "prepare", "folder", "--data", tmp_path)
    said = capsys.readouterr()
    assert f"cannot keep decoded images in {tmp_path}/.fastinfogan" in said.err and "No space left" in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("svhn", ("train_32x32.mat", "page of The Street View House Numbers", "data render svhn-like")),
        ("celeba", ("img_align_celeba.zip", "CelebA project page", "data render celeba-like")),
        ("faces", ("Basel Face Model", "data render faces")),
        ("chairs", ("rendered_chairs.tar", "page of Seeing 3D Chairs", "data render chairs")),
        ("dsprites", ("or40x32y32_64x64.npz", "dsprites-dataset", "data render sprites")),
    ],
)
def test_fetch_says_where_an_absent_set_is_to_be_had(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    parts: tuple[str, ...],
) -> None:
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "fetch", name, "--data", tmp_path)
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1
    assert all(part in said for part in (*parts, str(tmp_path))), said


def test_render_draws_with_what_the_command_line_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(command, "draw", lambda name, **options: asked.append((name, options)))
    options = ["--count", 7, "--seed", 3, "--out", tmp_path, "--size", 64, "--workers", 1]
    for name in NAMES:
        run(monkeypatch, "render", name, *options)
    rest = {"count": 7, "seed": 3, "out": tmp_path, "size": 64, "models": None, "workers": 1}
    assert asked == [(name, rest) for name in NAMES]


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
    subprocess.run([sys.executable, "-m", "bench", "data", *options], cwd=ROOT, check=True, timeout=120)
    rows = list(csv.DictReader(out.open()))
    assert [row["provider"] for row in rows] == [
        "pil-dataloader",
        "dali-stream",
        "dali-store",
        "resident-uint8",
        "dali-decoder",
    ]
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"])
        assert (row["unit"], row["images"]) == ("images/s", "64")
        assert row["cores"] and row["nvidia-dali-cuda130"]
