"""``python -m fastinfogan.data``: fetch a data set, and look at it the way the networks will.

``check`` goes through the very functions that training uses, so what it shows (crop, channels, range, the files left
out) is what a run gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional

from fastinfogan import ops
from fastinfogan.commands import run_command
from fastinfogan.config import DatasetName, TablesName, preset
from fastinfogan.data import Encoded, Split, open_split
from fastinfogan.data.decode import decode_all
from fastinfogan.figures import grid
from fastinfogan.networks import TABLES

SHEET_COLUMNS = 10
CHUNK = 4096  # images summed at a time

app = tyro.extras.SubcommandApp()
Name = Annotated[Positional[DatasetName], tyro.conf.arg(help="the data set", metavar="NAME")]


@app.command
def fetch(name: Name, /, data: Path = Path("data")) -> None:
    """Make sure that a data set is there and whole: MNIST is downloaded, for the others it says how to get them.

    Args:
        data: Where the data sets lie or are fetched to; for 'folder', the images themselves.
    """
    config = preset(name)
    split = open_split(name, data, "train", config.network_tables.image, tables=config.tables)
    print(f"{name}: {len(split):,} training images in {data.absolute()}")


@app.command
def check(
    name: Name,
    /,
    data: Path = Path("data"),
    split: Split = "train",
    tables: TablesName | None = None,
    gray: bool = False,
    sheet: Path | None = None,
) -> None:
    """Decode a data set as training would; print counts, sizes, rejected files and range; draw a contact sheet.

    Args:
        data: Where the data sets lie; for 'folder', the images themselves.
        split: Which part of the set.
        tables: The networks that the images are for; those of the data set's preset where none are given.
        gray: Turn colour images to grey, for networks of one channel.
        sheet: The PNG to write; NAME-SPLIT.png in the current folder where none is given.
    """
    networks = TABLES[tables := tables or preset(name).tables]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = open_split(name, data, split, networks.image, gray=gray, tables=tables)
    # every damaged file is to be listed here, so none is one too many
    decoded = decode_all(opened, networks.image, device, reject_limit=1.0) if isinstance(opened, Encoded) else opened

    low, high = networks.image_range
    pixels, n = decoded.pixels, len(decoded)
    least, most = (low + (high - low) * int(value) / 255 for value in pixels.aminmax())
    total = sum(int(chunk.sum(dtype=torch.int64)) for chunk in pixels.split(CHUNK))
    mean = low + (high - low) * total / pixels.numel() / 255
    shown = torch.linspace(0, n - 1, min(n, SHEET_COLUMNS**2)).long()
    sheet = sheet or Path(f"{name}-{split}.png")
    sheet.parent.mkdir(parents=True, exist_ok=True)
    grid(ops.image_batch(pixels, shown, low=low, high=high), SHEET_COLUMNS, (low, high)).save(sheet)

    print(
        f"{name} {split}: {n:,} images of {'x'.join(str(size) for size in pixels.shape[1:])}, {pixels.numel():,} bytes"
    )
    if decoded.labels is not None:
        counts = enumerate(decoded.labels.bincount().tolist())
        print(f"labels: {' '.join(f'{label}:{count:,}' for label, count in counts)}")
    print(f"rejected: {len(decoded.rejected):,} of {len(opened):,}")
    for one in decoded.rejected:
        print(f"  {one.name}: {one.reason}")
    print(f"for the {tables} networks: mean {mean:.4f}, from {least:.4f} to {most:.4f} of [{low:g}, {high:g}]")
    print(f"contact sheet: {sheet.absolute()}")


def main() -> None:
    """Run the subcommand named on the command line."""
    app.cli(prog="python -m fastinfogan.data", description=(__doc__ or "").split("\n\n")[1])


if __name__ == "__main__":
    run_command(main)
