"""DALI decodes what PIL decodes; damaged files are named and left out; a set is decoded once."""

from __future__ import annotations

import dataclasses
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from image_files import bomb, photograph, truncated, write_folder
from PIL import Image, ImageOps

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from fastinfogan.data import Encoded, Factors, decode
from fastinfogan.data.decode import Decoder, decode_all
from fastinfogan.data.folder import open_folder
from fastinfogan.errors import UserError

CPU = torch.device("cpu")
DAMAGED: dict[str, tuple[bytes, str]] = {
    "cut": (truncated(photograph(5)), "truncated"),
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404 not found</html>", "not an image, it starts with 3c 68 74 6d 6c"),
    "gif": (photograph(5, kind="GIF"), "a GIF file named .jpg: rename it, or convert it to JPEG"),
    "png": (photograph(5, kind="PNG"), "a PNG file named .jpg: rename it, or convert it to JPEG"),
    "header": (photograph(5)[:40], "truncated: a JPEG that ends before it says its size"),
    "bomb": (bomb(kind="JPEG"), "its header says 50,000 x 50,000 pixels, more than 16,384 a side"),
}


def by_pil(content: bytes, image: tuple[int, int, int], crop: int | None) -> npt.NDArray[np.uint8]:
    channels, height, width = image
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("L" if channels == 1 else "RGB")
    side = min(*picture.size, crop or 10**9)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, channels)


def folder_of(root: Path, n: int, damaged: dict[int, bytes] | None = None) -> Encoded:
    files = {f"{i:03d}.jpg": photograph(i, 90, 110) for i in range(n)}
    files |= {f"{i:03d}.jpg": content for i, content in (damaged or {}).items()}
    return open_folder(write_folder(root, files), "train")


@pytest.fixture(scope="module")
def mixed_kinds(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Files of every usual kind and shape."""
    files = {
        "0.jpg": photograph(0),
        "1.jpg": photograph(1, mode="L"),
        "2.png": photograph(2, kind="PNG"),
        "3.png": photograph(3, mode="RGBA", kind="PNG"),
        "4.png": photograph(4, mode="LA", kind="PNG"),
        "5.jpg": photograph(5, 200, 150),
        "6.jpeg": photograph(6, 150, 150, mode="CMYK"),
        "7.png": photograph(7, 20, 24, kind="PNG"),
        "8.jpg": photograph(8, 200, 150, orientation=6),
        "9.png": photograph(9, 150, 200, kind="PNG", orientation=8),
    }
    return open_folder(write_folder(tmp_path_factory.mktemp("kinds"), files), "train")


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 28, 28), (1, 64, 64)])
@pytest.mark.parametrize("crop", [148, None])
def test_dali_agrees_with_pil_to_a_few_grey_levels(
    mixed_kinds: Encoded, image: tuple[int, int, int], crop: int | None
) -> None:
    encoded = dataclasses.replace(mixed_kinds, crop=crop)
    decoded = decode_all(encoded, image, CPU, progress=False, keep=False)
    expected = np.stack([by_pil(encoded.read(i), image, crop) for i in range(len(encoded))])
    assert decoded.pixels.shape == expected.shape and decoded.pixels.dtype == torch.uint8
    difference = np.abs(decoded.pixels.numpy().astype(int) - expected)
    # two JPEG decoders and two filters, each rounded to bytes; an error of half a pixel in the crop gives 20 and more
    assert difference.max() <= 6 and difference.mean() < 1


@pytest.mark.parametrize("crop", [60, None])
def test_a_photograph_is_turned_upright_as_its_camera_marked_it(tmp_path: Path, crop: int | None) -> None:
    files = {
        f"{kind}{mark}.{kind}": photograph(mark, 97, 140, kind=kind.upper(), orientation=mark)
        for kind in ("jpeg", "png")
        for mark in range(1, 9)
    }
    encoded = dataclasses.replace(open_folder(write_folder(tmp_path, files), "train"), crop=crop)
    decoded = decode_all(encoded, (3, 32, 32), CPU, progress=False, keep=False)
    expected = np.stack([by_pil(encoded.read(i), (3, 32, 32), crop) for i in range(16)])
    assert np.abs(decoded.pixels.numpy().astype(int) - expected).max() <= 6


def test_a_store_of_pictures_that_were_not_turned_upright_is_not_used_again(tmp_path: Path) -> None:
    encoded = folder_of(tmp_path, 3)
    before, shape = np.zeros((3, 16, 16, 3), np.uint8), (3, 16, 16, 3)
    key = f"{encoded.fingerprint} {encoded.crop}"
    decode.store.keep("folder", tmp_path, key, shape, lambda *_: iter([(before, {})]), progress=False)
    assert decode_all(encoded, (3, 16, 16), CPU, progress=False).pixels.any()


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_and_left_out(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, reason = DAMAGED[kind]
    whole = decode_all(folder_of(tmp_path / "whole", 10), (3, 16, 16), CPU, progress=False)
    encoded = folder_of(tmp_path / "damaged", 10, {4: content})
    decoded = decode_all(encoded, (3, 16, 16), CPU, progress=False)
    assert torch.equal(decoded.pixels, whole.pixels[[0, 1, 2, 3, 5, 6, 7, 8, 9]])
    assert [one.name for one in decoded.rejected] == [f"{tmp_path}/damaged/004.jpg"]
    assert reason in decoded.rejected[0].reason
    assert f"rejected {tmp_path}/damaged/004.jpg: {decoded.rejected[0].reason}" in capfd.readouterr().err


def test_a_file_that_cannot_be_read_is_rejected_like_a_damaged_one(tmp_path: Path) -> None:
    encoded = folder_of(tmp_path, 10)
    (tmp_path / "003.jpg").unlink()
    decoded = decode_all(encoded, (3, 16, 16), CPU, progress=False)
    assert len(decoded) == 9 and "No such file" in decoded.rejected[0].reason


def test_a_file_that_can_be_read_again_is_no_longer_missing_from_the_store(tmp_path: Path) -> None:
    encoded = folder_of(tmp_path, 10, {4: DAMAGED["cut"][0], 5: DAMAGED["empty"][0]})
    hidden = (tmp_path / "003.jpg").rename(tmp_path / "003.hidden")
    assert decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.3).lost == (3, 4, 5)
    store = next((tmp_path / ".fastinfogan").glob("*.npy"))
    built = store.stat().st_mtime_ns
    decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.3)
    assert store.stat().st_mtime_ns == built
    hidden.rename(tmp_path / "003.jpg")
    assert decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.3).lost == (4, 5)


def test_more_damage_than_allowed_stops_with_the_numbers(tmp_path: Path) -> None:
    damaged = {i: DAMAGED[kind][0] for i, kind in enumerate(DAMAGED)}
    encoded = folder_of(tmp_path, 20, damaged)
    with pytest.raises(
        UserError, match=r"2 of 20 files of folder cannot be decoded, at most 1 may be, .*--reject-limit"
    ):
        decode_all(encoded, (3, 16, 16), CPU, progress=False)
    assert not list((tmp_path / ".fastinfogan").glob("folder*"))
    decoded = decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.5)
    assert len(decoded) == 20 - len(DAMAGED) and len(decoded.rejected) == len(DAMAGED)


def test_a_store_made_under_a_higher_limit_is_no_way_around_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = folder_of(tmp_path, 20, {3: b"", 7: b"", 9: b""})
    assert len(decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=1.0)) == 17
    named = capsys.readouterr().err
    assert named.count("rejected ") == 3
    with pytest.raises(UserError, match=r"3 of 20 files of folder cannot be decoded, at most 2 may be, .*009.jpg"):
        decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.1)
    assert capsys.readouterr().err == named  # as the error says


def test_factors_keep_to_the_images_that_can_be_decoded(tmp_path: Path) -> None:
    encoded = folder_of(tmp_path, 6, {1: b"", 4: b"damaged"})
    values = torch.arange(12.0).view(6, 2)
    factors = Factors(("one", "two"), ("continuous", "circular"), values, (0.0, 0.0), (1.0, 360.0))
    for _ in range(2):  # decoded, then found again
        decoded = decode_all(
            dataclasses.replace(encoded, factors=factors), (3, 16, 16), CPU, progress=False, reject_limit=0.5
        )
        assert decoded.factors is not None and torch.equal(decoded.factors.values, values[[0, 2, 3, 5]])


def test_the_reason_is_another_decoders_or_that_dali_alone_refuses() -> None:
    assert decode._reason(np.frombuffer(photograph(5), np.uint8)) == "DALI cannot decode this JPEG"
    assert "truncated" in decode._reason(np.frombuffer(truncated(photograph(5)), np.uint8))


@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_set_of_nothing_but_damage_stops(tmp_path: Path, content: bytes) -> None:
    encoded = folder_of(tmp_path, 3, dict.fromkeys(range(3), content))
    with pytest.raises(UserError, match="3 of 3 files of folder cannot be decoded"):
        decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=1.0)


def test_the_verdict_on_a_file_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    # DALI decodes the centre of a file cut near its end, PIL refuses it: were PIL the judge whenever a neighbour
    # fails, the same file would be in one batch and not in another
    encoded = folder_of(tmp_path, 12, {2: truncated(photograph(2, 90, 200), 0.9), 3: b"damaged"})

    def plan(k: int) -> torch.Tensor:
        return torch.arange(4 * k, 4 * k + 4) % 12

    decoder = Decoder(encoded, (3, 16, 16), device=CPU, batch=4, plan=plan, reject_limit=0.1)
    beside = decoder.at(0)
    assert list(decoder.rejected) == [3]
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(encoded.read(2))).load()
    alone = Decoder(encoded, (3, 16, 16), device=CPU, batch=1, plan=lambda k: torch.tensor([2]), reject_limit=0.1)
    assert torch.equal(beside[2], alone.at(0)[0])


def test_an_error_that_no_file_causes_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(Decoder, "_run", lost)
    with pytest.raises(RuntimeError, match="device lost"):
        decode_all(folder_of(tmp_path, 5), (3, 16, 16), CPU, progress=False)


def test_batches_stay_valid_while_later_ones_are_decoded(tmp_path: Path) -> None:
    encoded = folder_of(tmp_path, 8)
    decoder = Decoder(
        encoded, (3, 16, 16), device=CPU, batch=2, plan=lambda k: torch.arange(2) + 2 * (k % 4), reject_limit=0
    )
    batches = [decoder.at(k) for k in range(12)]
    decoder.close()
    assert torch.equal(torch.cat(batches[:4]), torch.cat(batches[8:]))
    assert torch.equal(torch.cat(batches[:4]), decode_all(encoded, (3, 16, 16), CPU, progress=False).pixels)


def test_a_set_is_decoded_once_and_mapped_after_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = folder_of(tmp_path, 10, {4: b"damaged"})
    first = decode_all(encoded, (3, 16, 16), CPU, progress=False)
    monkeypatch.setattr(Decoder, "at", lambda *_: pytest.fail("decoded again"))
    second = decode_all(open_folder(tmp_path, "train"), (3, 16, 16), CPU, progress=False)
    assert torch.equal(first.pixels, second.pixels) and first.rejected == second.rejected
    assert not list((tmp_path / ".fastinfogan").glob("*.part"))


def test_an_interrupted_decoding_goes_on_and_ends_with_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "STORE_BATCH", 4)
    monkeypatch.setattr(decode.store, "BLOCK", 8)
    encoded = folder_of(tmp_path, 30, {2: b"damaged", 9: b"", 27: b"damaged"})
    whole = decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.2, keep=False)
    at, asked = Decoder.at, []

    def interrupted(self: Decoder, k: int) -> torch.Tensor:
        asked.append(k)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return at(self, k)

    monkeypatch.setattr(Decoder, "at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.2)
    decoded = decode_all(encoded, (3, 16, 16), CPU, progress=False, reject_limit=0.2)
    assert asked == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7] and "going on after 16 images" in capsys.readouterr().err
    assert torch.equal(decoded.pixels, whole.pixels) and decoded.rejected == whole.rejected and len(decoded) == 27


@pytest.mark.parametrize(
    "change",
    [
        lambda encoded, root: (encoded, (3, 20, 20)),
        lambda encoded, root: (dataclasses.replace(encoded, crop=40), (3, 16, 16)),
        lambda encoded, root: (folder_of(root, 10, {4: photograph(99)}), (3, 16, 16)),
    ],
)
def test_another_size_crop_or_file_is_decoded_anew(
    tmp_path: Path, change: Callable[[Encoded, Path], tuple[Encoded, tuple[int, int, int]]]
) -> None:
    encoded = folder_of(tmp_path, 10)
    first = decode_all(encoded, (3, 16, 16), CPU, progress=False)
    second = decode_all(*change(encoded, tmp_path), CPU, progress=False)
    assert first.pixels.shape != second.pixels.shape or not torch.equal(first.pixels, second.pixels)


def test_a_folder_that_cannot_be_written_costs_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoded = folder_of(tmp_path / "photos", 5)
    expected = decode_all(encoded, (3, 16, 16), CPU, progress=False, keep=False).pixels
    assert not (tmp_path / "photos" / ".fastinfogan").exists()
    (tmp_path / "file").write_text("")
    decoded = decode_all(dataclasses.replace(encoded, home=tmp_path / "file"), (3, 16, 16), CPU, progress=False)
    assert torch.equal(decoded.pixels, expected)
    assert f"stay in memory, {tmp_path}/file/.fastinfogan cannot be used" in capsys.readouterr().err


def test_of_two_at_once_one_decodes_and_the_other_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, calls = folder_of(tmp_path, 10), []
    build = Decoder._build

    def counted(*arguments: object) -> object:
        calls.append(1)
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "_build", counted)
    results: list[torch.Tensor] = []

    def run() -> None:
        results.append(decode_all(encoded, (3, 16, 16), CPU, progress=False).pixels)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and torch.equal(*results)


def test_without_dali_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130, or run --dataset mnist"):
        decode_all(folder_of(tmp_path, 3), (3, 16, 16), CPU, progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_decodes_what_the_cpu_decodes(mixed_kinds: Encoded) -> None:
    cpu, gpu = (
        decode_all(mixed_kinds, (3, 32, 32), torch.device(device), progress=False, keep=False).pixels.int()
        for device in ("cpu", "cuda")
    )
    assert (cpu - gpu).abs().max() <= 8
