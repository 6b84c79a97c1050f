"""Zips and tars are read in place, and a hostile or broken one is refused before anything believes it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from image_files import photograph, truncated, write_folder, write_tar, write_zip

from fastinfogan.data import Encoded, archives
from fastinfogan.data.folder import open_folder
from fastinfogan.errors import UserError

FILES = {"b.JPG": b"b", "a/2.png": b"2", "a/10.jpeg": b"10", "notes.txt": b"no image", "__MACOSX/._b.jpg": b""}


def contents(encoded: Encoded) -> list[bytes]:
    return [encoded.read(i) for i in range(len(encoded))]


def test_a_tar_is_the_folder_it_was_made_from(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "photos", FILES), "train")
    tarred = open_folder(write_tar(tmp_path / "photos.tar", FILES), "train")
    assert contents(tarred) == contents(folder) == [b"10", b"2", b"b"]
    assert tarred.names[0] == f"{tmp_path}/photos.tar/a/10.jpeg" and tarred.home == tmp_path


def test_a_tar_of_all_that_is_in_a_folder_is_that_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", FILES)
    subprocess.run(["tar", "-cf", tmp_path / "photos.tar", "-C", folder, "."], check=True)  # ./a/10.jpeg
    tarred = open_folder(tmp_path / "photos.tar", "train")
    assert contents(tarred) == contents(open_folder(folder, "train"))
    assert tarred.names[0] == f"{tmp_path}/photos.tar/a/10.jpeg"


def test_a_tar_is_read_from_forked_processes(tmp_path: Path) -> None:
    tarred = open_folder(write_tar(tmp_path / "photos.tar", {f"{i}.png": os.urandom(999) for i in range(9)}), "train")
    expected = contents(tarred)
    child = os.fork()
    if child == 0:
        os._exit(contents(tarred) != expected)
    assert contents(tarred) == expected and os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "..\\evil.png", "\\\\host\\evil.jpg"]
)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_archive_whose_names_lead_out_of_it_is_refused(tmp_path: Path, name: str, write: type) -> None:
    path = write(tmp_path / "in" / f"photos.{write.__name__[-3:]}", {"good.jpg": photograph(1), name: photograph(2)})
    with pytest.raises(UserError, match=re.escape(f"{path} holds a file named {name!r}, which leads out of")) as caught:
        open_folder(path, "train")
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.rglob("*")] == ["in", path.name]


def test_two_dots_within_a_name_are_harmless(tmp_path: Path) -> None:
    assert len(open_folder(write_zip(tmp_path / "photos.zip", {"a..b.jpg": b"1", "..c/d.jpg": b"2"}), "train")) == 1


def test_links_and_devices_in_a_tar_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("whole.jpg")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"whole"))
    assert contents(open_folder(path, "train")) == [b"whole"]


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"b.jpg": b"b", "a/2.png": b"2"})
    (folder / "again").symlink_to(".")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "round.jpg").symlink_to("round.jpg")
    opened = open_folder(folder, "train")
    assert [name.removeprefix(f"{folder}/") for name in opened.names] == ["a/2.png", "b.jpg", "round.jpg"]


def test_links_to_files_and_folders_are_followed_and_pipes_are_not_waited_for(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", {"1.jpg": b"1", "more/2.jpg": b"2"})
    folder = write_folder(tmp_path / "photos", {"own.jpg": b"own"})
    (folder / "file.jpg").symlink_to(elsewhere / "1.jpg")
    (folder / "folder").symlink_to(elsewhere / "more")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "to_pipe.jpg").symlink_to("pipe.jpg")
    assert contents(open_folder(folder, "train")) == [b"1", b"2", b"own"]


def test_a_link_to_nothing_is_an_error_of_that_file_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"a.jpg": b"a"})
    (folder / "b.jpg").symlink_to("missing")
    opened = open_folder(folder, "train")
    assert opened.read(0) == b"a"
    with pytest.raises(FileNotFoundError):
        opened.read(1)
    write_folder(folder, {"missing": b"b"})
    found = open_folder(folder, "train")
    assert contents(found) == [b"a", b"b"] and found.fingerprint != opened.fingerprint


@pytest.mark.parametrize("kind", ["photos", "photos.tar"])
def test_a_file_of_the_same_size_and_another_date_is_another_file(tmp_path: Path, kind: str) -> None:
    found = set()
    for date in (1, 2):
        path = write_folder(tmp_path / "photos", {"a.jpg": bytes([date])}) / "a.jpg"
        os.utime(path, (date, date))
        with tarfile.open(tmp_path / "photos.tar", "w") as archive:
            archive.add(path, "a.jpg")
        found.add(open_folder(tmp_path / kind, "train").fingerprint)
    assert len(found) == 2


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = write_folder(tmp_path, {"a.jpg": b"a", "locked/b.jpg": b"b"}), os.scandir

    def refuse(path: Path) -> object:  # root may read whatever its mode is
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(archives.os, "scandir", refuse)
    told = rf"cannot list the folder {folder}/locked \(Permission denied\): make it readable, or give another one"
    with pytest.raises(UserError, match=told):
        open_folder(folder, "train")


def test_names_that_are_not_utf_8_are_read_and_can_be_printed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"caf\xe9.jpg", b"caf\xe8.jpg"):
        (folder / os.fsdecode(name)).write_bytes(name)
    with tarfile.open(tmp_path / "photos.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder / os.fsdecode(b"caf\xe8.jpg"), "caf\xe8.jpg")
        archive.add(folder / os.fsdecode(b"caf\xe9.jpg"), "caf\xe9.jpg")
    opened = [open_folder(folder, "train"), open_folder(tmp_path / "photos.tar", "train")]
    for one in opened:
        assert contents(one) == [b"caf\xe8.jpg", b"caf\xe9.jpg"]
        assert [name.encode().rsplit(b"/")[-1] for name in one.names] == [rb"caf\udce8.jpg", rb"caf\udce9.jpg"]
    (folder / os.fsdecode(b"caf\xe9.jpg")).rename(folder / os.fsdecode(b"caf\xea.jpg"))
    assert open_folder(folder, "train").fingerprint != opened[0].fingerprint


def tar_of(*sizes: int) -> bytes:
    """A tar of files of those sizes; each takes 512 bytes and its own, rounded up to 512."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number, size in enumerate(sizes):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = size
            archive.addfile(member, io.BytesIO(os.urandom(size)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("kept", "where"),
    [
        (0, "in nothing"),
        (300, "in a header"),
        (700, "in a file"),
        (1536, "between two files"),
        (3072, "before the mark"),
    ],
)
def test_a_tar_that_breaks_off_is_told_wherever_it_does(tmp_path: Path, kept: int, where: str) -> None:
    path = tmp_path / "photos.tar"
    path.write_bytes(tar_of(1000, 1000)[:kept])
    with pytest.raises(UserError, match=f"photos.tar of {kept:,} bytes is not a whole tar file .*download it again"):
        open_folder(path, "train")


def test_a_tar_damaged_between_its_files_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    content = bytearray(tar_of(1000, 1000, 1000))
    content[1536 + 100] ^= 0xFF  # in the header of the second file
    (tmp_path / "photos.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"not a whole tar file \(no end mark after 1 files\)"):
        open_folder(tmp_path / "photos.tar", "train")


def test_a_compressed_tar_is_told_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UserError, match="not a whole tar file without compression"):
        open_folder(tmp_path / "photos.tar", "train")


def test_a_tar_that_shrinks_after_it_was_opened_is_an_error_of_that_file(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "photos.tar", {"a.png": bytes(2000), "b.png": bytes(2000)})
    tarred = open_folder(path, "train")
    path.write_bytes(truncated(path.read_bytes(), 0.3))
    assert len(tarred.read(0)) == 2000
    with pytest.raises(OSError, match="ends within this file"):
        tarred.read(1)


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.png": bytes(5000), "b.png": b"small"}
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    monkeypatch.setattr(archives, "MAX_BYTES", 4999)
    for root in (path, write_tar(tmp_path / "photos.tar", files), write_folder(tmp_path / "photos", files)):
        opened = open_folder(root, "train")
        with pytest.raises(OSError, match="the file holds 5,000 bytes, more than the 4,999 that a picture may"):
            opened.read(0)
        assert opened.read(1) == b"small"
