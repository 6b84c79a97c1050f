"""Small data sets in the published formats, and damaged ones: what the tests of the data path read.

Photographs are smooth (a few random colours, enlarged), because noise compresses badly and decoders may differ on it.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from fastinfogan.data import idx

ATTRIBUTES = tuple(f"Attribute_{i}" for i in range(40))


def photograph(
    seed: int,
    width: int = 178,
    height: int = 218,
    mode: str = "RGB",
    kind: str = "JPEG",
    orientation: int | None = None,
) -> bytes:
    """A smooth image of random colours as the bytes of a ``kind`` file; ``orientation`` is the camera's mark in it."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    picture = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    options: dict[str, Any] = {"quality": 90} if kind == "JPEG" else {}
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    picture.save(content, kind, **options)
    return content.getvalue()


def truncated(content: bytes, share: float = 0.4) -> bytes:
    """The first part of a file, as a download that broke off leaves it."""
    return content[: int(len(content) * share)]


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """``files`` (name with ``/`` -> content) below ``folder``, which is returned."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """``files`` stored in the zip ``path``, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """``files`` in the tar ``path``, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def bomb(width: int = 50_000, height: int = 50_000, kind: str = "PNG") -> bytes:
    """A small file whose header claims ``width`` x ``height`` pixels; a PNG is whole but for the number of its rows."""
    if kind == "JPEG":
        content = bytearray(photograph(0, 16, 16))
        at = content.index(b"\xff\xc0") + 5  # after the marker, the length and the bits per sample
        content[at : at + 4] = struct.pack(">HH", height, width)
        return bytes(content)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 16), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def write_celeba(root: Path, n: int, *, zipped: bool = False) -> dict[str, bytes]:
    """A CelebA of ``n`` images below ``root``/celeba, with its attributes; returns the files."""
    files = {f"img_align_celeba/{i:06d}.jpg": photograph(i) for i in range(1, n + 1)}
    if zipped:
        write_zip(root / "celeba" / "img_align_celeba.zip", files)
    else:
        write_folder(root / "celeba", files)
    marks = np.where(np.random.default_rng(0).random((n, len(ATTRIBUTES))) < 0.5, -1, 1)
    lines = [str(n), " ".join(ATTRIBUTES)]
    lines += [f"{i:06d}.jpg  " + " ".join(map(str, row)) for i, row in enumerate(marks, start=1)]
    (root / "celeba" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return files


def idx_files(train: int, test: int | None = None, *, seed: int = 0) -> dict[str, bytes]:
    """The four files of an MNIST of so many random images, as many in the test split where nothing else is asked."""
    rng = np.random.default_rng(seed)
    files = {}
    for prefix, n in (("train", train), ("t10k", train if test is None else test)):
        files[f"{prefix}-images-idx3-ubyte"] = idx.encode(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx.encode(rng.integers(0, 10, n, dtype=np.uint8))
    return files


def gzipped(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files gzipped, with ``.gz`` behind their names."""
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


def write_svhn(root: Path, n: int, split: str = "train") -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An SVHN file of ``n`` random images below ``root``/svhn; returns X [32, 32, 3, n] and y [n, 1] as published."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    labels = (np.arange(n, dtype=np.uint8) % 10 + 1).reshape(n, 1)
    (root / "svhn").mkdir(parents=True, exist_ok=True)
    savemat(root / "svhn" / f"{split}_32x32.mat", {"X": pixels, "y": labels}, do_compression=True)
    return pixels, labels


def chairs(models: int = 2) -> dict[str, bytes]:
    """The files of ``rendered_chairs.tar``: each model from two elevations and two azimuths, 600 x 600 on white."""
    files = {}
    for model in range(models):
        for number, (elevation, azimuth) in enumerate([(20, 0), (20, 11), (30, 0), (30, 348)]):
            picture = Image.new("RGB", (600, 600), "white")
            picture.paste((40 * model, azimuth % 256, elevation), (200, 150, 400, 450))
            content = io.BytesIO()
            picture.save(content, "PNG")
            name = f"{model:032x}/renders/image_{number:03d}_p{elevation:03d}_t{azimuth:03d}_r096.png"
            files[f"rendered_chairs/{name}"] = content.getvalue()
    return files


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_dsprites(root: Path, n: int = 12, **changes: object) -> dict[str, npt.NDArray[np.generic]]:
    """A dSprites of ``n`` images below ``root``/dsprites with the published arrays, among them the pickled note.

    ``changes`` replaces arrays; returns them.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "imgs": rng.integers(0, 2, (n, 64, 64), dtype=np.uint8),
        "latents_classes": np.stack([np.arange(n) % k for k in (1, 3, 6, 40, 32, 32)], 1).astype(np.int64),
        "latents_values": rng.random((n, 6)),
        "metadata": np.array({"title": "a dict, so pickled"}, dtype=object),
    }
    arrays |= changes  # type: ignore[arg-type]
    (root / "dsprites").mkdir(parents=True, exist_ok=True)
    path = root / "dsprites" / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return arrays


def write_renders(folder: Path, n: int, size: int = 32, **changes: object) -> npt.NDArray[np.uint8]:
    """What a renderer of ours leaves in ``folder``: ``images.npy`` and ``factors.npz``; returns the images.

    ``changes`` replaces arrays of the factor file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    arrays = {
        "names": np.array(["azimuth", "width", "style"]),
        "kinds": np.array(["circular", "continuous", "categorical"]),
        "units": np.array(["degrees", "", "plain|striped"]),
        "low": np.array([0, 0.5, 0], np.float32),
        "high": np.array([360, 2, 1], np.float32),
        "values": np.stack([rng.random(n) * 360, rng.random(n) + 0.5, np.arange(n) % 2], 1).astype(np.float32),
    }
    np.savez(folder / "factors.npz", **arrays | changes)  # type: ignore[arg-type]
    return images
