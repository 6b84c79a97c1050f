"""What is known of each image is read beside it, row for row, from files that are not believed."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import (
    Trap,
    chairs,
    photograph,
    truncated,
    write_celeba,
    write_folder,
    write_renders,
    write_svhn,
    write_tar,
)

from fastinfogan.data import Decoded, Encoded, Factors, factors, open_split
from fastinfogan.data.celeba import open_celeba
from fastinfogan.data.factors import factors_of, read_factors, write_factors
from fastinfogan.data.renders import chair_factors, open_chairs, open_faces
from fastinfogan.errors import UserError


def test_a_factor_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = torch.stack([torch.rand(5), torch.tensor([3.0, 0, 1, 2, 3])], 1)
    units = ("degrees", "a|b|c|d")
    written = Factors(("azimuth", "style"), ("circular", "categorical"), values, (-180.0, 0.0), (180.0, 3.0), units)
    write_factors(tmp_path / "factors.npz", written)
    found = read_factors(tmp_path / "factors.npz")
    assert torch.equal(found.values, values) and found.values.dtype == torch.float32
    assert (found.names, found.kinds, found.low, found.high) == (written.names, written.kinds, (-180, 0), (180, 3))
    assert torch.equal(found.rows([3, 0]).values, values[[3, 0]]) and len(found.rows([3, 0])) == 2
    assert found.units == found.rows([3, 0]).units == units


def test_a_factor_file_is_the_same_bytes_whenever_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Factors(("light",), ("continuous",), torch.rand(5, 1), (0.0,), (1.0,))
    for year in (1999, 2026):
        monkeypatch.setattr(time, "localtime", lambda *_, year=year: time.gmtime((year - 1970) * 31_556_952))
        write_factors(tmp_path / f"{year}.npz", written)
    assert (tmp_path / "1999.npz").read_bytes() == (tmp_path / "2026.npz").read_bytes()


def test_a_factor_file_without_units_is_read(tmp_path: Path) -> None:
    write_renders(tmp_path, 4)
    with np.load(tmp_path / "factors.npz") as arrays:
        np.savez(tmp_path / "factors.npz", **{name: arrays[name] for name in arrays if name != "units"})
    assert read_factors(tmp_path / "factors.npz").units == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"values": np.zeros((4, 2), np.float32)}, r"values float32 \[4, 2\], expected k names and values"),
        ({"values": np.zeros(4, np.float32)}, r"values float32 \[4\], expected k names"),
        ({"low": np.zeros(2, np.float32)}, r"low float32 \[2\]"),
        ({"names": np.zeros(3)}, r"names float64 \[3\]"),
        ({"names": np.float64(3)}, r"names float64 \[\]"),
        ({"units": np.array(["degrees"])}, r"units <U7 \[1\]"),
        ({"values": np.full((4, 3), "x")}, r"values <U1 \[4, 3\]"),
        ({"values": np.full((4, 3), np.nan)}, "with finite values"),
        ({"kinds": np.array(["circular", "round", "categorical"])}, "the kinds categorical, circular, round, expected"),
        (
            {"values": np.full((4, 3), -1)},
            "the class -1 of 'style', expected whole numbers from 0 to 1: render the set",
        ),
        ({"values": np.full((4, 3), 0.5)}, "the class 0.5 of 'style', expected whole numbers from 0 to 1"),
        ({"values": np.full((4, 3), 2)}, "the class 2 of 'style', expected whole numbers from 0 to 1"),
        ({"values": np.zeros((3, 3), np.float32)}, "describes 3 images but 4 lie beside it: render the set again"),
    ],
)
def test_arrays_that_do_not_agree_are_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    write_renders(tmp_path, 4, **changes)
    with pytest.raises(UserError, match=f"factors.npz .*{told}") as caught:
        factors_of(tmp_path, 4)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_a_factor_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    write_renders(tmp_path, 4, values=np.array([[Trap(tmp_path / "sprung")] * 3] * 4, dtype=object))
    with pytest.raises(
        UserError, match=r"factors.npz of [\d,]+ bytes is not a whole npz file of plain arrays .*pickle"
    ):
        factors_of(tmp_path, 4)
    assert not (tmp_path / "sprung").exists()


def test_a_factor_file_that_is_damaged_or_lacks_an_array_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_renders(tmp_path, 4)
    path = tmp_path / "factors.npz"
    content = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        path.write_bytes(truncated(content, share))
        with pytest.raises(UserError, match="is not a whole npz file of plain arrays"):
            read_factors(path)
    at = content.index(b"\x93NUMPY") + 150
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(UserError, match=r"not a whole npz file of plain arrays \(Bad CRC-32"):
        read_factors(path)
    np.savez(path, names=np.array(["a"]))
    with pytest.raises(UserError, match=r"it lacks kinds, low, high, values"):
        read_factors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("names", b"a")
    with pytest.raises(UserError, match=r"it lacks names, kinds, low, high, values"):
        read_factors(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("names", "kinds", "low", "high", "values"):
            archive.writestr(f"{name}.npy", b"no array")
    with pytest.raises(UserError, match="is not a whole npz file of plain arrays"):
        read_factors(path)
    path.write_bytes(content)
    monkeypatch.setattr(factors, "MAX_BYTES", 800)
    with pytest.raises(UserError, match=r"it claims [\d,]+ bytes"):
        read_factors(path)


def test_rendered_faces_are_mapped_with_their_factors(tmp_path: Path) -> None:
    images = write_renders(tmp_path / "faces", 6)
    for root in (tmp_path, tmp_path / "faces"):
        opened = open_faces(root, "train")
        assert isinstance(opened, Decoded) and opened.pixels.shape == (6, 32, 32, 1)
        assert np.array_equal(opened.pixels[..., 0], images)
        assert opened.factors is not None and opened.factors.names == ("azimuth", "width", "style")
        assert opened.factors.kinds == ("circular", "continuous", "categorical")
        assert opened.factors.high == (360, 2, 1) and len(opened.factors) == 6
    opened.pixels[:] = 0  # a copy of what was touched: the file stays
    assert np.array_equal(open_faces(tmp_path, "train").pixels[..., 0], images)


def test_a_folder_of_faces_takes_the_factors_beside_it_in_sorted_order(tmp_path: Path) -> None:
    write_renders(tmp_path / "faces", 3)
    (tmp_path / "faces" / "images.npy").unlink()
    write_folder(tmp_path / "faces", {f"{i}.png": photograph(i, 40, 40, "L", "PNG") for i in range(3)})
    opened = open_faces(tmp_path, "train")
    assert isinstance(opened, Encoded) and opened.factors is not None and len(opened.factors) == len(opened) == 3
    (tmp_path / "faces" / "2.png").unlink()
    with pytest.raises(UserError, match="describes 3 images but 2 lie beside it"):
        open_faces(tmp_path, "train")
    (tmp_path / "faces" / "factors.npz").unlink()
    assert open_faces(tmp_path, "train").factors is None


def test_a_folder_of_other_sets_is_no_folder_of_faces(tmp_path: Path) -> None:
    write_celeba(tmp_path, 3)
    with pytest.raises(UserError, match=r"renders of faces are absent: .*Basel Face Model .*data render faces --out"):
        open_faces(tmp_path, "train")


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((4, 32, 32, 3), np.uint8), r"holds uint8 \[4, 32, 32, 3\], expected uint8 \[n, H, W\]"),
        (np.zeros((4, 32, 32)), r"holds float64 \[4, 32, 32\], expected uint8"),
        (np.zeros((0, 32, 32), np.uint8), r"holds uint8 \[0, 32, 32\]"),
        (np.array([None] * 9), "of [0-9]+ bytes is not a whole array of images .*Python objects"),
        (b"", "of 0 bytes is not a whole array of images"),
        (b"\x93NUMPY", "of 6 bytes is not a whole array of images"),
    ],
)
def test_an_array_that_is_no_set_of_images_is_told(tmp_path: Path, images: Any, told: str) -> None:
    path = tmp_path / "chairs" / "images.npy"
    path.parent.mkdir()
    path.write_bytes(images) if isinstance(images, bytes) else np.save(path, images, allow_pickle=True)
    with pytest.raises(UserError, match=f"images.npy {told}"):
        open_chairs(tmp_path, "train")


def test_a_truncated_array_of_images_is_told(tmp_path: Path) -> None:
    write_renders(tmp_path / "chairs", 5, 64)
    path = tmp_path / "chairs" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"images.npy of 20,607 bytes is not a whole array of images"):
        open_chairs(tmp_path, "train")


def test_chairs_in_a_tar_and_unpacked_are_the_same_and_named_by_where_they_were_seen_from(tmp_path: Path) -> None:
    files = chairs(2)
    write_tar(tmp_path / "a" / "chairs" / "rendered_chairs.tar", files | {"rendered_chairs/all_chair_names.mat": b"m"})
    write_folder(tmp_path / "b" / "chairs", files)
    tarred, unpacked = (open_chairs(tmp_path / place, "train") for place in "ab")
    assert isinstance(tarred, Encoded) and isinstance(unpacked, Encoded) and tarred.crop == unpacked.crop == 400
    assert [tarred.read(i) for i in range(8)] == [unpacked.read(i) for i in range(8)] == list(files.values())
    for opened in (tarred, unpacked):
        assert opened.factors is not None and opened.factors.names == ("model", "azimuth", "elevation")
        assert opened.factors.kinds == ("categorical", "circular", "continuous")
        assert opened.factors.values.tolist() == [
            [model, azimuth, elevation]
            for model in (0, 1)
            for elevation, azimuth in [(20, 0), (20, 11), (30, 0), (30, 348)]
        ]
        assert (opened.factors.low, opened.factors.high) == ((0, 0, 20), (1, 360, 30))


def test_a_chair_of_another_name_is_told() -> None:
    good = "/data/rendered_chairs/abc/renders/image_000_p020_t011_r096.png"
    with pytest.raises(UserError, match=r"expected names like MODEL/renders/image_000_p020_t011_r096.png, got b.png"):
        chair_factors([good, "b.png"])


def test_absent_chairs_say_where_they_are_published_and_how_to_draw_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rendered_chairs.tar from the page of Seeing 3D Chairs.*data render chairs"):
        open_chairs(tmp_path, "train")


def test_celebas_factors_are_its_attributes_and_those_of_a_rendered_set_its_own(tmp_path: Path) -> None:
    write_celeba(tmp_path, 4)
    lines = (tmp_path / "celeba" / "list_attr_celeba.txt").read_text().splitlines()
    found = open_celeba(tmp_path, "train").factors
    assert found is not None and len(found.names) == 40 and set(found.kinds) == {"categorical"}
    assert found.values.tolist() == [[int(mark) > 0 for mark in line.split()[1:]] for line in lines[2:]]
    write_renders(tmp_path / "celeba", 4)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(
        "".join(f"{i:06d}.jpg {i % 2 * 2}\n" for i in (1, 2, 3, 4))
    )
    drawn = read_factors(tmp_path / "celeba" / "factors.npz")
    found = open_celeba(tmp_path, "train").factors  # images 2 and 4, so rows 1 and 3
    assert found is not None and torch.equal(found.values, drawn.values[[1, 3]])
    attributes = tmp_path / "celeba" / "list_attr_celeba.txt"
    attributes.write_text("\n".join(line for line in lines if not line.startswith("000004.jpg")))
    with pytest.raises(UserError, match=r"list_attr_celeba.txt .* has no line for 000004.jpg"):  # all the same
        open_celeba(tmp_path, "train")
    attributes.write_text("\n".join(lines))
    write_renders(tmp_path / "celeba", 3)
    with pytest.raises(UserError, match="describes 3 images but not all of the 2 beside it"):
        open_celeba(tmp_path, "train")


def test_svhns_factors_are_split_as_its_images_are(tmp_path: Path) -> None:
    write_svhn(tmp_path, 6)
    write_svhn(tmp_path, 2, "test")
    write_renders(tmp_path / "svhn", 8)
    drawn = read_factors(tmp_path / "svhn" / "factors.npz").values
    train, test = (open_split("svhn", tmp_path, split, (3, 32, 32)).factors for split in ("train", "test"))
    assert train is not None and test is not None
    assert torch.equal(train.values, drawn[:6]) and torch.equal(test.values, drawn[6:])
    write_renders(tmp_path / "svhn", 5)
    with pytest.raises(UserError, match="describes 5 images but the train split alone has 6"):
        open_split("svhn", tmp_path, "train", (3, 32, 32))


def test_factors_of_svhns_two_files_are_not_those_of_extra_images(tmp_path: Path) -> None:
    write_svhn(tmp_path, 6)
    write_svhn(tmp_path, 2, "test")
    write_svhn(tmp_path, 1, "extra")
    write_renders(tmp_path / "svhn", 8)
    train, test = (open_split("svhn", tmp_path, split, (3, 32, 32)) for split in ("train", "test"))
    assert len(train) == 7 and train.factors is None and test.factors is not None


def test_svhns_extra_images_join_the_training_images_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, labels = write_svhn(tmp_path, 6)
    write_svhn(tmp_path, 2, "test")
    extra, extra_labels = write_svhn(tmp_path, 4, "extra")
    train = open_split("svhn", tmp_path, "train", (3, 32, 32))
    assert isinstance(train, Decoded) and train.labels is not None
    assert np.array_equal(train.pixels, np.concatenate([pixels, extra], 3).transpose(3, 0, 1, 2))
    assert train.labels.tolist() == (np.concatenate([labels, extra_labels]).ravel() % 10).tolist()
    assert f"svhn: 4 images of {tmp_path}/svhn/extra_32x32.mat join the training images" in capsys.readouterr().err
    assert len(open_split("svhn", tmp_path, "test", (3, 32, 32))) == 2 and capsys.readouterr().err == ""
