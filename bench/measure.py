"""What all benchmarks share: the machine's description, taking turns, quantiles, and the CSV they leave.

Shared machines slow down and speed up, so contestants take turns within one run and are compared by the median of
their ratios turn by turn: a slow moment slows both sides of a ratio.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def machine_columns(device: str | torch.device, *packages: str) -> dict[str, str]:
    """What the figures were measured on: device, processor, cores, versions, commit."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    device = torch.device(device)
    columns = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": models[0] if models else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    for package in ("torch", *packages):
        try:
            columns[package] = version(package)
        except PackageNotFoundError:
            columns[package] = "not installed"
    return columns


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def in_turns(
    contestants: Mapping[str, Callable[[], object]], turns: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Seconds of each contestant in each of ``turns`` turns; one more turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Median and the 20 % and 80 % quantiles."""
    p20, median, p80 = np.quantile(values, (0.2, 0.5, 0.8))
    return {"median": float(median), "p20": float(p20), "p80": float(p80)}


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """``rows`` with the keys of the first as header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")


def significant(value: float) -> str:
    """Four digits: more would be noise."""
    return f"{value:.4g}"
