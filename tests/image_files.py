"""Small data sets in the published formats, and damaged ones: what the tests of the data path read.

Photographs are smooth (a few random colours, enlarged), because noise compresses badly and decoders may differ on it.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastinfogan.data import idx

ATTRIBUTES = tuple(f"Attribute_{i}" for i in range(40))


def photograph(seed: int, width: int = 178, height: int = 218, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A smooth image of random colours as the bytes of a ``kind`` file."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    picture = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    picture.save(content, kind, **({"quality": 90} if kind == "JPEG" else {}))
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


def idx_files(n: int, *, seed: int = 0) -> dict[str, bytes]:
    """The four files of an MNIST of ``n`` random images in either split."""
    rng = np.random.default_rng(seed)
    files = {}
    for prefix in ("train", "t10k"):
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
