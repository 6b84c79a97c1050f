"""What the data path alone reaches, in images a second: nothing is trained, every batch ends on the device.

Four providers of the same 32x32 batches of CelebA-format files take turns, so that a machine that slows down slows all
of them: the uint8 store, DALI streaming, DALI decoding once into a store, and what most training code does, a PyTorch
DataLoader whose workers decode with PIL. Without ``--data`` the files are made up: smooth, so easier than photographs.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fastinfogan.commands import run_command
from fastinfogan.data import Encoded, ResidentBatches, StreamBatches
from fastinfogan.data.decode import decode_all
from fastinfogan.data.files import open_celeba

IMAGE = (3, 32, 32)
RANGE = (-1.0, 1.0)
RESULTS = Path(__file__).parent / "results" / "data.csv"


@dataclass(frozen=True)
class Options:
    """Measure the data path alone."""

    data: Path | None = None
    """A folder with CelebA as published; made-up files where none is given."""
    batch: int = 128
    """Images per batch."""
    images: int = 2000
    """Made-up images."""
    rounds: int = 9
    """Turns that each provider takes."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the batches end."""
    quick: bool = False
    """Half of the images and three rounds: to see that it runs, not to quote."""
    out: Path = RESULTS
    """The CSV to write."""


class PilFiles(Dataset[torch.Tensor]):
    """The plain way: open, crop, resize, normalise, image by image."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = Image.open(io.BytesIO(self.encoded.read(index))).convert("RGB")
        side = min(*picture.size, self.encoded.crop or min(picture.size))
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        small = picture.crop((left, top, left + side, top + side)).resize(IMAGE[1:], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() * ((RANGE[1] - RANGE[0]) / 255) + RANGE[0]


def main(options: Options | None = None) -> None:
    """Measure every provider in turns, print medians with 20 % and 80 % quantiles, and write them as CSV."""
    options = options or tyro.cli(Options, prog="python -m bench data", description=__doc__)
    rounds, images = (3, options.images // 2) if options.quick else (options.rounds, options.images)
    machine = machine_columns(options.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    with tempfile.TemporaryDirectory() as made:
        root = options.data or made_up(Path(made), images)
        encoded = open_celeba(root, "train")
        turns = dict(providers(encoded, options.batch, torch.device(options.device)))
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(rounds + 1):
            for name, run in turns.items():
                start = time.perf_counter()
                count = run()
                if options.device.startswith("cuda"):
                    torch.cuda.synchronize()
                if turn:  # the first warms up
                    rates[name].append(count / (time.perf_counter() - start))
    rows = [summary(name, values) | machine for name, values in rates.items()]
    for row in rows:
        print(f"{row['provider']:<16} {row['median']:>10} images/s  (20 %: {row['p20']}, 80 %: {row['p80']})")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.out}")


def providers(encoded: Encoded, batch: int, device: torch.device) -> Iterator[tuple[str, Callable[[], int]]]:
    """Name and one turn of each provider; a turn delivers one epoch to ``device`` and returns its number of images."""
    steps = len(encoded) // batch
    loader = DataLoader(
        PilFiles(encoded),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    low, high = RANGE
    stream = StreamBatches(encoded, image=IMAGE, batch=batch, seed=0, low=low, high=high, flip=False, device=device)
    decoded = decode_all(encoded, IMAGE, device, progress=False, keep=False)
    resident = ResidentBatches(decoded, batch=batch, seed=0, low=low, high=high, flip=False, device=device)

    def pil() -> int:
        return sum(len(images.to(device, non_blocking=True)) for images in loader)

    def in_sequence(batches: StreamBatches | ResidentBatches) -> Callable[[], int]:
        def turn() -> int:
            batches.close()  # or the batches decoded ahead while others had their turn would count
            return sum(len(batches.at(step)) for step in range(steps))

        return turn

    yield "pil-dataloader", pil  # first, so that its workers are forked before DALI has threads
    yield "dali-stream", in_sequence(stream)
    yield "dali-store", lambda: len(decode_all(encoded, IMAGE, device, progress=False, keep=False))
    yield "resident-uint8", in_sequence(resident)


def made_up(root: Path, n: int) -> Path:
    """``n`` smooth random JPEGs of 178 x 218 in CelebA's layout below ``root``, which is returned."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(1, n + 1):
        colours = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        colours.resize((178, 218), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
    return root


def summary(name: str, rates: list[float]) -> dict[str, str]:
    """One row: median and quantiles of images a second."""
    p20, median, p80 = np.quantile(rates, (0.2, 0.5, 0.8))
    return {
        "provider": name,
        "metric": "throughput",
        "median": f"{median:.0f}",
        "p20": f"{p20:.0f}",
        "p80": f"{p80:.0f}",
        "unit": "images/s",
    }


def machine_columns(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu": models[0] if models else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch": torch.__version__,
        "dali": version("nvidia-dali-cuda130"),
        "pillow": version("pillow"),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    run_command(main)
