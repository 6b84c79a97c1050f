"""What all benchmarks share: the machine's description, taking turns, quantiles, and the CSV they leave.

Shared machines slow down and speed up, so contestants take turns within one run and are compared by the median of
their ratios turn by turn: a slow moment slows both sides of a ratio.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from fastinfogan.errors import UserError
from fastinfogan.files import write_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
# GPU of a model's estimates -> its driver's name for it; a card of other peaks has another
DRIVERS_NAMES = {"A100 80GB": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3", "B200": "NVIDIA B200"}
AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


def results_file(name: str, quick: bool, out: Path | None) -> Path:
    """``out`` where given; else ``bench/results/NAME.csv``, which a quick run never touches: it is not to be quoted."""
    return out or (ROOT / "build" / "quick" if quick else RESULTS) / f"{name}.csv"


def announce(device: str | torch.device, *packages: str) -> dict[str, str]:
    """:func:`machine_columns`, printed."""
    machine = machine_columns(device, *packages)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    return machine


def machine_columns(device: str | torch.device, *packages: str) -> dict[str, str]:
    """What the figures were measured on: device, processor, cores, versions, commit.

    The cores are those that the process may use, and on a CPU no more than torch's threads.
    """
    device = torch.device(device)
    cores = len(os.sched_getaffinity(0))
    columns = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": processor(Path("/proc/cpuinfo").read_text()),
        "cores": str(cores if device.type == "cuda" else min(cores, torch.get_num_threads())),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    for package in ("torch", *packages):
        try:
            columns[package] = version(package)
        except PackageNotFoundError:
            columns[package] = "not installed"
    return columns


def processor(cpuinfo: str) -> str:
    """The processor that ``/proc/cpuinfo`` tells of, with its family and model where its name is of many."""
    lines = (line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    told: dict[str, str] = {}
    for key, value in lines:
        told.setdefault(key.strip(), value.strip())  # of the first core
    name = told.get("model name") or platform.processor()
    if any(character.isdigit() for character in name) or "cpu family" not in told:
        return name
    return f"{name} (family {told['cpu family']}, model {told['model']})"


def machine_name(row: Mapping[str, Any]) -> str:
    """What in :func:`machine_columns` decides how fast a row's run was, to be read: ``AMD EPYC, 2 cores``."""
    if row["device"] != "cpu":
        return str(row["device"])
    return f"{row['cpu']}, {row['cores']} core{'s' if row['cores'] != '1' else ''}"


def by_machine(rows: Sequence[AnyRow]) -> dict[str, list[AnyRow]]:
    """The rows of each machine, by its name: times of different ones say nothing of each other."""
    machines: dict[str, list[AnyRow]] = {}
    for row in rows:
        machines.setdefault(machine_name(row), []).append(row)
    return machines


def _commit() -> str:
    """The commit; behind it ``-dirty-`` and a hash of what differs, but for results, which a benchmark itself changes.

    A file of code that git does not know yet counts as well.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("diff", "HEAD", "--", ".", ":!bench/results")
    for name in git("ls-files", "--others", "--exclude-standard", "--", "*.py", "csrc").splitlines():
        changed += f"{name}\n{(ROOT / name).read_text(errors='replace')}"
    digest = hashlib.sha256(changed.encode(errors="replace")).hexdigest()[:7]
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (f"-dirty-{digest}" if changed else "")


def wait(device: torch.device) -> None:
    """Until all that was launched on ``device`` is done: a GPU's clock is read only then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    contestants: Mapping[str, Callable[[], object]], turns: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Seconds of each contestant in each of ``turns`` turns; one more turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def require_turns(flag: str, turns: int) -> None:
    """Raise a UserError unless ``turns``, what ``flag`` gives :func:`in_turns`, are any."""
    if turns < 1:
        raise UserError(f"{flag} must be at least 1, got {turns}")


def repeated(run: Callable[[], object], times: int) -> Callable[[], None]:
    """``times`` calls as one, so that a turn is long beside the clock and the scheduler."""

    def loop() -> None:
        for _ in range(times):
            run()

    return loop


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Median and the 20 % and 80 % quantiles."""
    p20, median, p80 = np.quantile(values, (0.2, 0.5, 0.8))
    return {"median": float(median), "p20": float(p20), "p80": float(p80)}


def throughput_rows(
    seconds: Mapping[str, np.ndarray], images: Mapping[str, int], machine: Mapping[str, str]
) -> list[dict[str, object]]:
    """A row, printed too, per provider: images a second, from the ``seconds`` in which it delivered its ``images``."""
    rows: list[dict[str, object]] = []
    for name, values in seconds.items():
        rate = quantiles(images[name] / values)
        print(f"{name:<16} {rate['median']:>10.0f} images/s  (20 %: {rate['p20']:.0f}, 80 %: {rate['p80']:.0f})")
        figures = {key: significant(value) for key, value in rate.items()}
        rows.append({"provider": name, "images": images[name], "unit": "images/s", **figures, **machine})
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """``rows`` with the keys of the first as header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, table.getvalue().encode())  # the rows before it are of hours
    print(f"written to {path}")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of ``path``; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def has(row: Mapping[str, str], identity: Mapping[str, str]) -> bool:
    """Whether ``row`` has every value of ``identity``."""
    return all(row.get(key) == value for key, value in identity.items())


def keep_rows(path: Path, rows: Sequence[Mapping[str, str]], identity: Mapping[str, str]) -> None:
    """``rows`` in ``path`` in place of those of that identity; a column that a row lacks stays empty.

    Two commands may do so at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        others = [row for row in read_csv(path) if not has(row, identity)]
        columns = dict.fromkeys(key for row in (*others, *rows) for key in row)
        write_csv(path, [{key: row.get(key, "") for key in columns} for row in (*others, *rows)])
    finally:
        os.close(folder)


def put_beside_model(path: Path, measured: Mapping[str, str], identity: Mapping[str, str], device: str) -> None:
    """Put ``measured`` into the rows of ``path``, a model's estimates, that have ``identity`` and are of this GPU.

    device: the GPU's name as its driver gives it.
    """
    rows = read_csv(path)
    own = [row for row in rows if has(row, identity) and DRIVERS_NAMES[row["gpu"]] == device]
    for row in own:
        row.update(measured)
    if own:
        write_csv(path, rows)


def open_csv(path: Path, columns: Sequence[str]) -> None:
    """Make ``path`` ready to take rows of ``columns`` behind those that it has.

    Raises:
        UserError: it has other columns.
    """
    if before := read_csv(path):
        if list(before[0]) != list(columns):
            raise UserError(f"{path} has columns {', '.join(before[0])}, not {', '.join(columns)}: move it away first")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.DictWriter(file, columns, lineterminator="\n").writeheader()


def append_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """``rows`` behind those of ``path``, which :func:`open_csv` has made ready for them."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, list(rows[0]), lineterminator="\n").writerows(rows)


def significant(value: float) -> str:
    """Four digits: more would be noise."""
    return f"{value:.4g}"
