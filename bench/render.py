"""How fast the renderers draw: images a second from nothing to the files of a set, the contact sheet included.

The renderers take turns, each in a process of its own, as a user starts them: what a process needs before its first
image is in, so that a set of tens of thousands is made at a higher rate than the one here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

from bench import plots
from bench.measure import ROOT, announce, in_turns, results_file, throughput_rows, write_csv
from fastinfogan.data.render import NAMES


@dataclass(frozen=True)
class Options:
    """Measure every renderer."""

    images: int = 2000
    """Images of each set."""
    turns: int = 5
    """Turns that each renderer takes."""
    quick: bool = False
    """100 images and one turn: to see that it runs, not to quote."""
    out: Path | None = None
    """The CSV to write, with a picture beside it; bench/results/render.csv, or build/quick/ instead with --quick."""


def main() -> None:
    """Print a row per renderer and write them as CSV with a picture."""
    options = tyro.cli(Options, prog="python -m bench render", description=__doc__)
    images, turns = (100, 1) if options.quick else (options.images, options.turns)
    out = results_file("render", options.quick, options.out)
    machine = announce(torch.device("cpu"))
    runs = {name: partial(rendered, name, images) for name in NAMES}
    seconds = in_turns(runs, turns, torch.device("cpu"))
    rows = throughput_rows(seconds, dict.fromkeys(NAMES, images), machine)
    write_csv(out, rows)
    plots.save(plots.throughputs(rows), out)


def rendered(name: str, images: int) -> None:
    """One set, made by the data command and thrown away."""
    command = [sys.executable, "-m", "fastinfogan.data", "render", name, "--count", str(images), "--seed", "0"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--out", folder], cwd=ROOT, check=True, capture_output=True)
