"""A set in tar shards is the set: the same files in the same order, for any rank, and only if every hash agrees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import photograph, write_celeba, write_folder

from fastinfogan.data import BatchPlan, Encoded, StreamBatches, open_split, shards
from fastinfogan.data.celeba import open_celeba
from fastinfogan.data.folder import open_folder
from fastinfogan.data.shards import write_shards
from fastinfogan.errors import UserError
from fastinfogan.files import exclusive

N = 22
IMAGE = (3, 16, 16)
KINDS = {".jpg": "JPEG", ".PNG": "PNG"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """JPEG and PNG files in subfolders, two of them damaged."""
    files = {
        f"{i % 3}/{i:02d}{(suffix := list(KINDS)[i % 2])}": photograph(i, 60, 50, kind=KINDS[suffix]) for i in range(N)
    }
    files |= {"1/07.PNG": b"", "2/08.jpg": b"damaged"}
    return open_folder(write_folder(tmp_path_factory.mktemp("photos"), files), "train")


def sharded(encoded: Encoded, out: Path, size: int = 5000) -> Encoded:
    write_shards(encoded, out, "train", shard_bytes=size, progress=False)
    opened = open_split("folder", out, "train", IMAGE)
    assert isinstance(opened, Encoded)
    return opened


def stream(encoded: Encoded, batch: int, **others: Any) -> StreamBatches:
    plan = BatchPlan(batch, 3, -1.0, 1.0, flip=True, device=torch.device("cpu"))
    return StreamBatches(encoded, dataclasses.replace(plan, **others), image=IMAGE, reject_limit=0.2)


def test_shards_hold_the_files_of_the_set_in_its_order(photos: Encoded, tmp_path: Path) -> None:
    opened = sharded(photos, tmp_path)
    assert len(opened) == N and [opened.read(i) for i in range(N)] == [photos.read(i) for i in range(N)]
    tars = sorted((tmp_path / "train").glob("*.tar"))
    assert 3 <= len(tars) < N and tars[0].name == "folder-train-000000.tar"
    assert opened.names[0] == f"{tars[0]}/000000000.jpg" and opened.names[-1].startswith(f"{tars[-1]}/000000021.")
    assert opened.names[1].endswith("png") and len(opened.names[2:5]) == 3


def test_every_shard_is_a_tar_for_other_readers_and_as_large_as_asked_for(photos: Encoded, tmp_path: Path) -> None:
    sharded(photos, tmp_path)
    found: list[bytes] = []
    for path in sorted((tmp_path / "train").glob("*.tar")):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            found += [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
        but_last = sum(512 + -(-member.size // 512) * 512 for member in members[:-1])
        assert but_last < 5000
    assert found == [photos.read(i) for i in range(N)]


def test_a_shard_that_has_just_the_size_asked_for_is_full(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {f"{i}.jpg": bytes(512) for i in range(3)})  # a header and one block each
    sharded(open_folder(tmp_path / "photos", "train"), tmp_path, size=1024)
    assert len(list((tmp_path / "train").glob("*.tar"))) == 3


def test_the_index_is_the_one_that_dalis_own_tool_writes(photos: Encoded, tmp_path: Path) -> None:
    pytest.importorskip("wds2idx", reason="DALI is not installed")
    sharded(photos, tmp_path)
    path, made = sorted((tmp_path / "train").glob("*.tar"))[1], tmp_path / "made.idx"
    subprocess.run([sys.executable, "-m", "wds2idx", path, made], check=True, capture_output=True)
    assert path.with_suffix(".idx").read_text() == made.read_text()


def test_dalis_own_reader_reads_the_shards(photos: Encoded, tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    opened = sharded(photos, tmp_path)
    tars = sorted(map(str, (tmp_path / "train").glob("*.tar")))
    expected = [photos.read(i) for i in range(N) if opened.names[i].endswith("jpg")]

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read() -> Any:
        indices = [tar.replace(".tar", ".idx") for tar in tars]
        return dali.fn.readers.webdataset(
            paths=tars, index_paths=indices, ext=["jpg"], missing_component_behavior="skip", dtypes=dali.types.UINT8
        )

    pipeline = read()
    pipeline.build()
    got = [np.array(pipeline.run()[0].at(0)).tobytes() for _ in expected]
    assert got == expected


def test_a_stream_of_shards_is_bitwise_the_stream_of_the_folder_for_any_rank_and_resume(
    photos: Encoded, tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    folder = stream(photos, 4)
    alone = stream(sharded(photos, tmp_path), 4)
    ranks = [stream(sharded(photos, tmp_path), 2, rank=rank, world=2) for rank in range(2)]
    for step in range(folder.order.steps_per_epoch + 2):
        images = folder.at(step).clone()
        assert torch.equal(images, alone.at(step))
        assert torch.equal(images, torch.cat([rank.at(step) for rank in ranks]))
    resumed = stream(sharded(photos, tmp_path), 4)
    assert torch.equal(resumed.at(3), folder.at(3)) and torch.equal(resumed.at(6), folder.at(6))


def test_the_fingerprint_of_shards_changes_with_their_files_and_not_with_the_place(
    photos: Encoded, tmp_path: Path
) -> None:
    swapped = dataclasses.replace(photos, read=lambda i: photos.read({0: 2, 2: 0}.get(i, i)))
    one, again, other = (sharded(of, tmp_path / place) for place, of in (("a", photos), ("b", photos), ("c", swapped)))
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_celebas_shards_keep_its_crop_its_split_and_its_factors(tmp_path: Path) -> None:
    write_celeba(tmp_path, 5)
    celeba = open_celeba(tmp_path, "train")
    write_shards(celeba, tmp_path / "out", "train", progress=False)
    opened = open_split("celeba", tmp_path / "out", "train", (3, 32, 32))
    assert isinstance(opened, Encoded) and opened.crop == celeba.crop == 148 and len(opened) == 5
    assert opened.factors is not None and celeba.factors is not None
    assert opened.factors.names == celeba.factors.names and opened.factors.kinds == celeba.factors.kinds
    assert torch.equal(opened.factors.values, celeba.factors.values)
    with pytest.raises(UserError, match="CelebA is absent"):
        open_split("celeba", tmp_path / "out", "test", (3, 32, 32))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_shards_written_again_are_verified_and_left_as_they_are(photos: Encoded, tmp_path: Path) -> None:
    sharded(photos, tmp_path)
    before = state(tmp_path / "train")
    sharded(photos, tmp_path)
    after = state(tmp_path / "train")
    assert {name: one for name, one in before.items() if name != shards.MANIFEST} == {
        name: one for name, one in after.items() if name != shards.MANIFEST
    }
    for shard in json.loads((tmp_path / "train" / shards.MANIFEST).read_text())["shards"]:
        content = (tmp_path / "train" / shard["file"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (shard["sha256"], shard["size"])


def test_interrupted_writing_goes_on_after_the_last_whole_shard(photos: Encoded, tmp_path: Path) -> None:
    expected = state(sharded(photos, tmp_path / "whole").home)
    asked: list[int] = []

    def until(last: int) -> Callable[[int], bytes]:
        def read(index: int) -> bytes:
            asked.append(index)
            if index == last:
                raise KeyboardInterrupt
            return photos.read(index)

        return read

    with pytest.raises(KeyboardInterrupt):
        sharded(dataclasses.replace(photos, read=until(15)), tmp_path / "cut")
    with pytest.raises(UserError, match=r"shards in .* are not complete: run the same `prepare` again"):
        open_split("folder", tmp_path / "cut", "train", IMAGE)
    asked.clear()
    resumed = sharded(dataclasses.replace(photos, read=until(99)), tmp_path / "cut")
    assert 0 < asked[0] <= 15
    found = state(resumed.home)
    assert {name: content for name, (_, content) in found.items()} == {
        name: content for name, (_, content) in expected.items()
    }


def test_a_list_of_no_shards_is_not_complete(photos: Encoded, tmp_path: Path) -> None:
    sharded(photos, tmp_path)
    path = tmp_path / "train" / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shards": []}))
    with pytest.raises(UserError, match="are not complete: run the same `prepare` again"):
        open_split("folder", tmp_path, "train", IMAGE)


def test_a_repair_that_was_interrupted_is_not_taken_for_the_whole_set(photos: Encoded, tmp_path: Path) -> None:
    def read(index: int) -> bytes:
        if index == N - 1:
            raise KeyboardInterrupt
        return photos.read(index)

    sharded(photos, tmp_path)
    sorted((tmp_path / "train").glob("*.tar"))[1].unlink()
    with pytest.raises(KeyboardInterrupt):
        sharded(dataclasses.replace(photos, read=read), tmp_path)
    with pytest.raises(UserError, match="are not complete: run the same `prepare` again"):
        open_split("folder", tmp_path, "train", IMAGE)


@pytest.mark.parametrize("victim", [".tar", ".idx"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_a_damaged_shard_is_told_or_written_anew(
    photos: Encoded, tmp_path: Path, victim: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sharded(photos, tmp_path)
    path = sorted((tmp_path / "train").glob(f"*{victim}"))[1]
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-1000])
    else:
        path.write_bytes(content[:9] + b"9" + content[10:])
    if (victim, damage) != (".tar", "flipped"):  # which costs reading all of it: only `prepare` looks
        with pytest.raises(UserError, match=r"the shards in .* are damaged \(.*\): run the same `prepare` again"):
            open_split("folder", tmp_path, "train", IMAGE)
    capsys.readouterr()
    opened = sharded(photos, tmp_path)
    assert f"{path.with_suffix('.tar')} is damaged and is written anew" in capsys.readouterr().err
    assert path.read_bytes() == content and [opened.read(i) for i in range(N)] == [photos.read(i) for i in range(N)]


def test_an_index_that_points_outside_its_tar_is_refused_even_with_its_hash(photos: Encoded, tmp_path: Path) -> None:
    sharded(photos, tmp_path)
    path = sorted((tmp_path / "train").glob("*.idx"))[0]
    manifest = tmp_path / "train" / shards.MANIFEST
    text, head, (_, *rest) = manifest.read_text(), path.read_text().splitlines()[0], path.read_text().splitlines()[1:]
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    for line in ("jpg -5 9 a.jpg", "jpg 512 99999999 a.jpg", "jpg 512", "jpg five 9 a.jpg", f"jpg {1 << 70} 1 a.jpg"):
        path.write_text("\n".join([head, line, *rest]) + "\n")
        manifest.write_text(text.replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))
        with pytest.raises(UserError, match=r"the shards in .* are damaged"):
            open_split("folder", tmp_path, "train", IMAGE)


def test_shards_of_another_set_are_not_written_over(photos: Encoded, tmp_path: Path) -> None:
    sharded(photos, tmp_path)
    before = state(tmp_path / "train")
    for other, size in ((dataclasses.replace(photos, fingerprint="another"), 5000), (photos, 6000)):
        with pytest.raises(
            UserError, match=r"holds shards of folder train in another state or of another size: choose"
        ):
            write_shards(other, tmp_path, "train", shard_bytes=size, progress=False)
    assert state(tmp_path / "train") == before


def test_a_file_that_cannot_be_read_keeps_its_number(
    photos: Encoded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(index: int) -> bytes:
        if index == 4:
            raise OSError("Bad CRC-32")
        return photos.read(index)

    opened = sharded(dataclasses.replace(photos, read=read), tmp_path)
    assert opened.read(4) == b"" and opened.read(5) == photos.read(5)
    assert f"rejected {photos.names[4]}: Bad CRC-32" in capsys.readouterr().err


def unreadable(encoded: Encoded, *indices: int) -> Encoded:
    def read(index: int) -> bytes:
        if index in indices:
            raise OSError("Input/output error")
        return encoded.read(index)

    return dataclasses.replace(encoded, read=read)


def test_more_unreadable_files_than_the_limit_stop_the_command_and_the_shards_are_not_whole(
    photos: Encoded, tmp_path: Path
) -> None:
    few = r"3 of 22 files of folder cannot be decoded, at most 2 may be, the last is .*17.PNG \(it cannot be read\)"
    with pytest.raises(UserError, match=few):
        write_shards(
            unreadable(photos, 4, 5, 20), tmp_path, "train", shard_bytes=5000, reject_limit=0.1, progress=False
        )
    with pytest.raises(UserError, match="not complete"):
        open_split("folder", tmp_path, "train", IMAGE)
    some = unreadable(photos, 4, 5)
    write_shards(some, tmp_path, "train", shard_bytes=5000, reject_limit=0.1, progress=False)
    with pytest.raises(UserError, match="2 of 22 files of folder cannot be decoded, at most 1 may be"):
        write_shards(some, tmp_path, "train", shard_bytes=5000, reject_limit=0.05, progress=False)


def test_files_that_can_be_read_again_are_no_longer_missing_from_the_shards(
    photos: Encoded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharded(unreadable(photos, 9), tmp_path)
    assert sharded(photos, tmp_path).read(9) == photos.read(9)
    assert "lacked can be read, it is written anew" in capsys.readouterr().err
    before = state(tmp_path / "train")
    sharded(unreadable(photos, 9), tmp_path)  # which had nothing to read any more
    assert all(before[name] == one for name, one in state(tmp_path / "train").items() if name.endswith(".tar"))


def test_two_commands_do_not_write_shards_into_one_folder(photos: Encoded, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    told = pytest.raises(UserError, match=r"another command is writing shards to .*choose another folder with --shards")
    with exclusive(tmp_path / "train" / shards.LOCK), told:
        write_shards(photos, tmp_path, "train", progress=False)
    assert [path.name for path in (tmp_path / "train").iterdir()] == [shards.LOCK]


def test_names_in_shards_of_a_folder_that_is_not_utf8_can_be_noted(photos: Encoded, tmp_path: Path) -> None:
    opened = sharded(photos, tmp_path / os.fsdecode(b"caf\xe9"))
    assert json.loads(json.dumps(opened.names[3])) == opened.names[3].encode().decode()
    assert opened.read(3) == photos.read(3)


def test_a_folder_that_cannot_be_written_is_a_sentence(photos: Encoded, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write shards to .*choose another folder with --shards"):
        write_shards(photos, tmp_path / "file", "train", progress=False)


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(photos: Encoded, tmp_path: Path) -> None:
    (tmp_path / "train" / shards.MANIFEST).mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot read .*shards.json \(Is a directory\): make its folder readable"):
        open_split("folder", tmp_path, "train", IMAGE)


def test_a_manifest_that_is_none_is_a_sentence(photos: Encoded, tmp_path: Path) -> None:
    sharded(photos, tmp_path)
    (tmp_path / "train" / shards.MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"shards.json is damaged .*: delete it and shard again"):
        open_split("folder", tmp_path, "train", IMAGE)
