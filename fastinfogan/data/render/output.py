"""Rendered sets on disk: drawn chunk by chunk by any number of processes, and either complete or not there.

Everything is made in ``<out>/.part``, which notes the chunks that are done, so that an interrupted command goes on, but
not after the machine has been started anew, or on another one: a note may have reached the disk before its images. The
finished files are renamed into ``out`` at the end, ``render.json`` last.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pydantic
import torch
from tqdm import tqdm

from fastinfogan.data.archives import RECORD, SHEET
from fastinfogan.data.factors import FILE as FACTORS
from fastinfogan.data.factors import write_factors
from fastinfogan.data.render.painter import Bytes, Factor, Floats, Painter, Recipe, picture
from fastinfogan.data.render.sheet import contact_sheet
from fastinfogan.data.split import Factors
from fastinfogan.errors import UserError, first_line
from fastinfogan.files import allocate, exclusive, write_whole

PART = ".part"
LOCK = "lock"
STARTED = "recipe.json"
BOOTED = "boot"
BOOT = Path("/proc/sys/kernel/random/boot_id")
CHUNK = 128  # images between two notes of what is done
PER_PROCESS = 1024  # images that are worth the seconds in which a process starts

Make = Callable[[Recipe], Painter]


class Layout:
    """How a set lies on disk: its pictures as the one array ``images.npy``. Other layouts change what they must."""

    products: tuple[str, ...] = ("images.npy",)
    least, most = 1, 10_000_000  # images

    def allocate(self, part: Path, count: int, shape: tuple[int, ...]) -> None:
        """Make room in the folder ``part`` for ``count`` images of ``shape``."""
        allocate(part / "images.npy", (count, *shape), np.uint8)

    def write(self, part: Path, first: int, images: Sequence[Bytes]) -> None:
        """Keep images ``first``, ``first + 1``, ... in ``part``; called by several processes at once."""
        np.load(part / "images.npy", mmap_mode="r+")[first : first + len(images)] = images

    def finish(self, part: Path, factors: Sequence[Factor], values: Floats) -> None:
        """Make the ``products`` in ``part``, once all images are kept; ``values`` is float32 [n, k]."""


def produce(
    recipe: Recipe, make: Make, layout: Layout, out: Path, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Draw the set of ``recipe`` into ``out``, or go on with it, and return its contact sheet.

    ``make`` builds the painter, in every process anew. Raises :class:`UserError` when ``out`` holds another set or
    files that are none of ours, cannot be written, or is being rendered into by another command.
    """
    painter = make(recipe)  # first: a missing package is told before anything is written
    part = out / PART
    with _alone(part):
        try:
            there = _is_there(out, recipe, layout)
        except UserError:
            (part / LOCK).unlink()
            with contextlib.suppress(OSError):  # it holds the beginning of a set
                part.rmdir()
            raise
        if not there:
            if not (part / RECORD).exists():
                _begin(part, recipe, painter, layout)
                _draw(part, recipe, make, painter, layout, workers, progress)
                _finish(part, recipe, painter, layout)
            for name in (*layout.products, FACTORS, SHEET, RECORD):
                if (part / name).exists():  # or an earlier command, interrupted just here, moved it
                    (part / name).rename(out / name)
        shutil.rmtree(part, ignore_errors=True)  # another command may put its lock there meanwhile
    return out / SHEET


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    with contextlib.ExitStack() as cleanup:
        try:
            part.mkdir(parents=True, exist_ok=True)
            cleanup.enter_context(exclusive(part / LOCK))
        except BlockingIOError:
            raise UserError(
                f"another command is rendering into {part.parent.absolute()}: let it end, or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write to {part.parent.absolute()} ({error}): choose another folder with --out"
            ) from None
        yield


def _is_there(out: Path, recipe: Recipe, layout: Layout) -> bool:
    """Whether ``out`` holds the set already. Raises :class:`UserError` if something else would be overwritten."""
    for record, state in ((out / RECORD, "holds"), (out / PART / STARTED, "holds the beginning of")):
        if record.exists() and (found := _recorded(record)) != recipe:
            told = ", ".join(f"{name} {value}" for name, value in asdict(found).items() if value is not None)
            raise UserError(
                f"{out.absolute()} {state} another set ({told}): choose another --out, or delete "
                f"{record.parent.absolute()}"
            )
    if (out / RECORD).exists():
        if missing := [name for name in (*layout.products, FACTORS) if not (out / name).exists()]:
            raise UserError(
                f"{out.absolute()} lacks {missing[0]} of the set that was rendered there: delete what is left of it, "
                f"or choose another --out"
            )
        return True
    strange = [name for name in (*layout.products, FACTORS, SHEET) if (out / name).exists()]
    if strange and not (out / PART / RECORD).exists():
        raise UserError(f"{out.absolute()} holds {strange[0]}, which was not rendered there: choose another --out")
    return False


def _recorded(record: Path) -> Recipe:
    try:
        return pydantic.TypeAdapter(Recipe).validate_json(record.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(
            f"{record.absolute()} is damaged ({first_line(error)}): choose another --out, or delete "
            f"{record.parent.absolute()}"
        ) from None


def _begin(part: Path, recipe: Recipe, painter: Painter, layout: Layout) -> None:
    """Room for images, factors and the notes of what is done, unless an earlier command made it since the last boot."""
    booted = BOOT.read_text() if BOOT.exists() else ""
    if (part / STARTED).exists():
        if (part / BOOTED).exists() and (part / BOOTED).read_text() == booted:
            return
        print(
            "notice: the machine was started anew meanwhile, or it was another one: all images are drawn again, as "
            "some may not have reached the disk",
            file=sys.stderr,
        )
    layout.allocate(part, recipe.count, painter.shape)
    allocate(part / "values.npy", (recipe.count, len(painter.factors)), np.float32)
    allocate(part / "done.npy", (-(-recipe.count // CHUNK),), np.uint8)
    write_whole(part / BOOTED, booted.encode())
    write_whole(part / STARTED, json.dumps(asdict(recipe)).encode())


def _draw(
    part: Path, recipe: Recipe, make: Make, painter: Painter, layout: Layout, workers: int | None, progress: bool
) -> None:
    values = np.load(part / "values.npy", mmap_mode="r+")
    done = np.load(part / "done.npy", mmap_mode="r+")
    rows = [range(first, min(first + CHUNK, recipe.count)) for first in range(0, recipe.count, CHUNK)]
    todo = {chunk: rows[chunk] for chunk in np.flatnonzero(done == 0).tolist()}
    left = sum(map(len, todo.values()))
    processes = min(workers or len(os.sched_getaffinity(0)), left // PER_PROCESS)
    run = partial(_chunk, layout=layout, part=part, seed=recipe.seed)
    drawn = (
        _shared(run, todo, processes, make, recipe)
        if processes > 1
        else ((chunk, run(todo[chunk], painter=painter)) for chunk in todo)
    )
    title = f"rendering {recipe.renderer}"
    with tqdm(total=recipe.count, initial=recipe.count - left, desc=title, unit=" images", disable=not progress) as bar:
        for chunk, their_values in drawn:
            values[rows[chunk].start : rows[chunk].stop] = their_values
            done[chunk] = 1
            bar.update(len(their_values))


def _shared(
    run: Callable[[range], Floats], todo: dict[int, range], processes: int, make: Make, recipe: Recipe
) -> Iterator[tuple[int, Floats]]:
    """``run`` on each of ``todo``, in processes of their own, as they end."""
    # spawned, not forked: neither OpenGL nor the threads of PyTorch live through a fork
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_start, initargs=(make, recipe))
    try:
        futures = {pool.submit(run, rows): chunk for chunk, rows in todo.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_own: list[Painter] = []  # the painter of a process that does nothing else


def _start(make: Make, recipe: Recipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started this process ends it
    _own.append(make(recipe))


def _chunk(rows: range, *, layout: Layout, part: Path, seed: int, painter: Painter | None = None) -> Floats:
    """Draw the images ``rows`` and keep them; returns their factors, float32 [len(rows), k]."""
    pictures = [picture(painter or _own[0], seed, index) for index in rows]
    layout.write(part, rows.start, [one.pixels for one in pictures])
    return np.stack([one.values for one in pictures])


def _finish(part: Path, recipe: Recipe, painter: Painter, layout: Layout) -> None:
    """All files of the set, complete and on the disk; the record among them says so."""
    factors, values = painter.factors, np.load(part / "values.npy")
    layout.finish(part, factors, values)
    write_factors(
        part / FACTORS,
        Factors(
            tuple(one.name for one in factors),
            tuple(one.kind for one in factors),
            torch.from_numpy(values),
            tuple(one.low for one in factors),
            tuple(one.high for one in factors),
            tuple(one.unit for one in factors),
        ),
    )
    contact_sheet(painter, recipe.seed, recipe.count).save(part / SHEET)
    os.sync()  # or a power cut could leave the names without the content; one by one, 20,000 JPEGs would take minutes
    write_whole(part / RECORD, json.dumps(asdict(recipe)).encode())
