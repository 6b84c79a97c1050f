"""What the data path alone reaches, in images a second: nothing is trained, every batch ends on the device.

Four providers of the same 32x32 batches of CelebA-format files take turns, so that a machine that slows down slows all
of them: the uint8 store, DALI streaming, DALI decoding once into a store, and what most training code does, a PyTorch
DataLoader whose workers decode with PIL. A fifth, DALI's decoder alone on files that lie in memory, is the ceiling of
those that decode. Without ``--data`` the files are made up: smooth, so easier than photographs.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench import plots
from bench.measure import announce, in_turns, require_turns, results_file, throughput_rows, write_csv
from fastinfogan.data import BatchPlan, Encoded, ResidentBatches, StreamBatches
from fastinfogan.data.celeba import open_celeba
from fastinfogan.data.decode import decode_all, decoder_threads
from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device

IMAGE = (3, 32, 32)
RANGE = (-1.0, 1.0)


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
    device: str = "auto"
    """Where the batches end: auto (a GPU where there is one), cpu, cuda or cuda:N."""
    quick: bool = False
    """Half of the images and three rounds: to see that it runs, not to quote."""
    out: Path | None = None
    """The CSV to write, with a picture beside it; bench/results/data.csv, or build/quick/ instead with --quick."""


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


def main() -> None:
    """Measure every provider in turns, print medians with 20 % and 80 % quantiles, and write them as CSV."""
    options = tyro.cli(Options, prog="python -m bench data", description=__doc__)
    rounds, images = (3, options.images // 2) if options.quick else (options.rounds, options.images)
    require_turns("--rounds", rounds)
    device = choose_device(options.device)
    out = results_file("data", options.quick, options.out)
    machine = announce(device, "nvidia-dali-cuda130", "pillow")
    with tempfile.TemporaryDirectory() as made:
        root = options.data or made_up(Path(made), images)
        encoded = open_celeba(root, "train")
        if not 1 <= options.batch <= len(encoded):
            raise UserError(f"--batch takes a number from 1 to {len(encoded):,}, the images, got {options.batch}")
        turns = dict(providers(encoded, options.batch, device))
        whole_batches = len(encoded) // options.batch * options.batch
        delivered = {name: len(encoded) if name == "dali-store" else whole_batches for name in turns}
        seconds = in_turns(turns, rounds, device)
    rows = throughput_rows(seconds, delivered, machine)
    write_csv(out, rows)
    plots.save(plots.throughputs(rows), out)


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
    plan = BatchPlan(batch, 0, *RANGE, flip=False, device=device)
    stream = StreamBatches(encoded, plan, image=IMAGE)
    decoded = decode_all(encoded, IMAGE, device, progress=False, keep=False)
    resident = ResidentBatches(decoded, plan)

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
    yield "dali-decoder", decoder_alone(encoded, batch, device)


def decoder_alone(encoded: Encoded, batch: int, device: torch.device) -> Callable[[], int]:
    """One epoch through DALI's decoder and nothing else: the files lie in memory, nothing is resized or moved."""
    from nvidia.dali import fn, pipeline_def, types

    files = [np.frombuffer(encoded.read(index), np.uint8) for index in range(len(encoded))]
    steps = len(files) // batch
    on_gpu = device.type == "cuda"

    @pipeline_def(batch_size=batch, num_threads=decoder_threads(), device_id=(device.index or 0) if on_gpu else None)
    def pixels() -> Any:
        content = fn.external_source(
            source=lambda info: files[info.iteration % steps * batch :][:batch],
            batch=True,
            batch_info=True,
            dtype=types.UINT8,
            ndim=1,
        )
        crop = (encoded.crop, encoded.crop)
        return fn.decoders.image_crop(content, crop=crop, device="mixed" if on_gpu else "cpu", output_type=types.RGB)

    def turn() -> int:
        pipeline = pixels()  # built anew, as those of the others are
        pipeline.build()
        return sum(len(pipeline.run()[0]) for _ in range(steps))

    return turn


def made_up(root: Path, n: int) -> Path:
    """``n`` smooth random JPEGs of 178 x 218 in CelebA's layout below ``root``, which is returned."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(1, n + 1):
        colours = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        colours.resize((178, 218), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
    return root
