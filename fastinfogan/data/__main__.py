"""``python -m fastinfogan.data``: get a data set, look at it the way the networks will, decode it ahead, or draw one.

``check`` and ``prepare`` go through the very functions that training uses, so what they show and keep (crop, channels,
range, the files left out) is what a run gets.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import torch
import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from fastinfogan import ops
from fastinfogan.commands import run_command
from fastinfogan.config import DatasetName, preset, require_reject_limit
from fastinfogan.data import Decoded, Encoded, Factors, Split, open_split, shards, store
from fastinfogan.data.decode import decode_all
from fastinfogan.data.header import Refused, require_decodable, size_of
from fastinfogan.data.render import RenderName
from fastinfogan.data.render import render as draw
from fastinfogan.errors import UserError
from fastinfogan.figures import grid, save
from fastinfogan.networks import TABLES, Tables, TablesName

SHEET_COLUMNS = 10
CHUNK = 4096  # images summed at a time
MEASURED = 1000  # files whose own sizes are looked at


def _one_of(names: object) -> str:
    return ", ".join(get_args(names))


app = tyro.extras.SubcommandApp()
Name = Annotated[Positional[DatasetName], tyro.conf.arg(help=_one_of(DatasetName), metavar="NAME")]
Drawn = Annotated[Positional[RenderName], tyro.conf.arg(help=_one_of(RenderName), metavar="NAME")]


@dataclass(frozen=True)
class Which:
    """The part of a data set that a command is about, and the networks that it is for."""

    data: Path | None = None
    """Where the data sets lie; for 'folder', the images themselves. As in training where none is given."""
    split: Split = "train"
    """Which part of the set."""
    tables: TablesName | None = None
    """The networks that the images are for; those of the data set's preset where none are given."""
    gray: FlagCreatePairsOff[bool] = False
    """Turn colour images to grey, for networks of one channel; the presets of faces and chairs do."""

    def tables_of(self, name: DatasetName) -> tuple[TablesName, Tables]:
        chosen = self.tables or preset(name).tables
        return chosen, TABLES[chosen]

    def root(self, name: DatasetName) -> Path:
        return self.data or preset(name).data

    def open(self, name: DatasetName, *, sharded: bool = True) -> Decoded | Encoded:
        """The split, as training would open it; with ``sharded`` off, whatever shards of it there are."""
        tables, networks = self.tables_of(name)
        gray = self.gray or (preset(name).gray and networks.image[0] == 1)
        return open_split(name, self.root(name), self.split, networks.image, gray=gray, tables=tables, sharded=sharded)


Flags = Annotated[Which, tyro.conf.arg(name="")]


@app.command
def fetch(name: Name, /, data: Path | None = None) -> None:
    """Make sure that a data set is there and whole: MNIST is downloaded, for the others it says how to get them.

    Args:
        data: Where the data sets lie or are fetched to; for 'folder', the images themselves. As in training where none
            is given.
    """
    which = Which(data)
    split = which.open(name)
    print(f"{name}: {len(split):,} training images in {which.root(name).absolute()}")


@app.command
def check(name: Name, /, which: Flags = Which(), sheet: Path | None = None) -> None:
    """Decode a data set as training would; print counts, sizes, rejected files and range; draw a contact sheet.

    Args:
        which: The part of the set.
        sheet: The PNG to write; NAME-SPLIT.png in the current folder where none is given.
    """
    tables, networks = which.tables_of(name)
    sheet = sheet or Path(f"{name}-{which.split}.png")
    opened = which.open(name)
    folders = {Path(one).resolve() for one in map(os.path.dirname, getattr(opened, "names", ()))}
    if name == "folder":
        folders.add(which.root(name).resolve())
    if not folders.isdisjoint(sheet.resolve().parents):
        raise UserError(f"{sheet.absolute()} would be one of the images of {which.root(name)}: give --sheet elsewhere")
    # every damaged file is to be listed here, so none is one too many
    decoded = _decode(opened, networks, reject_limit=1.0) if isinstance(opened, Encoded) else opened

    low, high = networks.image_range
    pixels, n = decoded.pixels, len(decoded)
    least, most = (low + (high - low) * int(value) / 255 for value in pixels.aminmax())
    total = sum(int(chunk.sum(dtype=torch.int64)) for chunk in pixels.split(CHUNK))
    mean = low + (high - low) * total / pixels.numel() / 255
    shown = torch.linspace(0, n - 1, min(n, SHEET_COLUMNS**2)).long()
    _write(sheet, ops.image_batch(pixels, shown, low=low, high=high), (low, high))

    print(f"{name} {which.split}: {n:,} images of {_shape(decoded)}, {pixels.numel():,} bytes")
    if isinstance(opened, Encoded):
        print(f"sizes of the files: {_sizes(opened)}")
    if decoded.labels is not None:
        counts = enumerate(decoded.labels.bincount().tolist())
        print(f"labels: {' '.join(f'{label}:{count:,}' for label, count in counts)}")
    if decoded.factors is not None:
        print("\n".join(_described(decoded.factors)))
    print(f"rejected: {len(decoded.rejected):,} of {len(opened):,}")
    for one in decoded.rejected:
        print(f"  {one.name}: {one.reason}")
    print(f"for the {tables} networks: mean {mean:.4f}, from {least:.4f} to {most:.4f} of [{low:g}, {high:g}]")
    print(f"contact sheet: {sheet.absolute()}")


@app.command
def prepare(
    name: Name,
    /,
    which: Flags = Which(),
    reject_limit: float = 0.01,
    shards_to: Annotated[Path | None, tyro.conf.arg(name="shards")] = None,
    shard_mib: int = shards.SHARD_BYTES >> 20,
) -> None:
    """Decode a data set once, into the store beside it that training maps; or copy its files into tar shards.

    Either is verified by its hashes if it is there already, and goes on where it was interrupted.

    Args:
        which: The part of the set.
        reject_limit: Share of the files that may be undecodable.
        shards_to: Write tar shards below this folder instead, for a set that no store can hold; train from there.
        shard_mib: Size of a shard in MiB.
    """
    require_reject_limit(reject_limit)
    if shard_mib < 1:
        raise UserError(f"--shard-mib must be 1 or more, got {shard_mib}")
    # shards that broke off there must not be taken for the set that they are of
    within = shards_to is not None and shards_to.resolve() == which.root(name).resolve()
    opened = which.open(name, sharded=not within)
    if isinstance(opened, Decoded):
        what = "shard" if shards_to else "decode"
        print(f"{name} {which.split}: {len(opened):,} images are published decoded, there is nothing to {what}")
    elif shards_to is not None:
        folder = shards.write_shards(
            opened, shards_to, which.split, shard_bytes=shard_mib << 20, reject_limit=reject_limit
        )
        print(f"{name} {which.split}: {len(opened):,} images in {folder}; train with --data {shards_to}")
    else:
        if not os.access(opened.home, os.W_OK):
            raise UserError(f"cannot keep decoded images in {opened.home.absolute()}: make that folder writable")
        decoded = _decode(opened, which.tables_of(name)[1], reject_limit=reject_limit, verify=True)
        print(
            f"{name} {which.split}: {len(decoded):,} images of {_shape(decoded)} in "
            f"{opened.home / store.FOLDER}, {len(decoded.rejected):,} rejected"
        )


@app.command
def render(
    name: Drawn,
    /,
    out: Path,
    count: int = 20_000,
    seed: int = 0,
    size: int | None = None,
    models: Path | None = None,
    workers: int | None = None,
) -> None:
    """Draw images with exact factors, in the layout that --dataset reads.

    Args:
        out: The folder to draw into.
        count: How many images.
        seed: Decides every image, whatever the count.
        size: Side in pixels, for faces and chairs: 32 or 64.
        models: Chairs: a folder of models to use.
        workers: Processes; one per core where none is given.
    """
    draw(name, count=count, seed=seed, out=out, size=size, models=models, workers=workers)


def _decode(opened: Encoded, networks: Tables, *, reject_limit: float, verify: bool = False) -> Decoded:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return decode_all(opened, networks.image, device, reject_limit=reject_limit, verify=verify)


def _write(sheet: Path, images: torch.Tensor, image_range: tuple[float, float]) -> None:
    try:
        save(grid(images, SHEET_COLUMNS, image_range), sheet)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the contact sheet {sheet} ({error}): choose a PNG with --sheet") from None


def _shape(decoded: Decoded) -> str:
    return "x".join(str(size) for size in decoded.pixels.shape[1:])


def _sizes(encoded: Encoded) -> str:
    """The sizes that the headers of the files say, before a mark turns them upright, by how many have it."""
    found: Counter[str] = Counter()
    for index in range(0, len(encoded), -(-len(encoded) // MEASURED)):
        try:
            require_decodable(content := encoded.read(index), encoded.names[index])
            width, height = size_of(content)
            found[f"{width}x{height}"] += 1
        except (OSError, Refused):
            continue  # among the rejected
    shown = ", ".join(f"{count:,} of {size}" for size, count in found.most_common(5))
    return f"{shown}{f' and {len(found) - 5:,} others' if len(found) > 5 else ''}"


def _described(factors: Factors) -> list[str]:
    lines = []
    for column, (name, kind) in enumerate(zip(factors.names, factors.kinds, strict=True)):
        values = factors.values[:, column]
        lines.append(
            f"factor {name}: {kind}, from {float(values.min()):g} to {float(values.max()):g} of "
            f"[{factors.low[column]:g}, {factors.high[column]:g}], {len(values.unique()):,} values"
        )
    return lines


def main() -> None:
    """Run the subcommand named on the command line."""
    app.cli(prog="python -m fastinfogan.data", description=(__doc__ or "").split("\n\n")[1])


if __name__ == "__main__":
    run_command(main)
