"""Time to quality on MNIST: from the cold start of a process to categories that are digits.

Each run is a fresh process (``bench/race.py``) and its clock starts before the interpreter does; what the compilers of
torch and Triton keep on disk is empty at its start, for all alike. It has arrived at the first evaluation, one every
250 iterations, with at least 2.2 nats of c1 and an error of at most 10 %, then 5 %, on 10,000 training images that no
contestant trains on; how that is judged stands in ``bench/judge.py``. The test error is reported beside it and stops
nothing. Contestants: ``eager`` and ``tuned``, the reference of ``bench/reference.py`` in fp32 and with what stock
PyTorch has switches for; ``same``, fastinfogan with their hyperparameters; ``own``, fastinfogan as the quick start
runs it.

A row per run is appended as soon as it ends, and a run that has its row is not repeated: start the command again after
an interruption, or with more seeds.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import tyro

from bench import plots
from bench.field import format_name
from bench.measure import (
    ROOT,
    announce,
    append_csv,
    by_machine,
    has,
    machine_name,
    open_csv,
    read_csv,
    results_file,
    significant,
)  # fmt: skip
from bench.plots import distinct, only
from bench.race import CONTESTANTS, MI_NATS, TARGETS, Point, Race, configuration, reached
from fastinfogan import data
from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device, choose_precision

NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Options:
    """Race to 10 % and 5 % error."""

    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    """Any of eager, tuned, same, own."""
    seeds: tuple[int, ...] = (0,)
    """One run of each contestant per seed."""
    limit_iterations: int = 4000
    """A run is given up after so many iterations, or after those of its preset if they are fewer."""
    limit_seconds: float = 3600.0
    """A run is given up at the first evaluation after so many seconds of training."""
    every: int = 250
    """Iterations between two evaluations."""
    data: Path = Path("data")
    """Where MNIST lies or is fetched to."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    again: bool = False
    """Repeat the runs that have their row."""
    quick: bool = False
    """Eager and own, four iterations, a few images judged: to see that it runs, not to quote."""
    out: Path | None = None
    """The CSV of runs, with a picture and NAME_curves.csv beside it; bench/results/speedrun.csv, or below build/quick/
    with --quick."""

    def check(self) -> None:
        """Raise a UserError for the first value that cannot work."""
        if unknown := [name for name in self.contestants if name not in CONTESTANTS]:
            raise UserError(f"--contestants takes any of {', '.join(CONTESTANTS)}, got {unknown[0]!r}")
        if bad := [seed for seed in self.seeds if not 0 <= seed < 1 << 64]:
            raise UserError(f"--seeds takes numbers from 0 to 2**64 - 1, got {bad[0]}")
        if not (self.contestants and self.seeds):
            raise UserError("--contestants and --seeds need at least one value each")
        for flag, value in (
            ("--every", self.every), ("--limit-iterations", self.limit_iterations),
            ("--limit-seconds", self.limit_seconds),
        ):  # fmt: skip
            if not value > 0:
                raise UserError(f"{flag} must be above 0, got {value}")


def main() -> None:
    """Run what has no row yet, seed by seed; then print the table of all runs and draw their curves."""
    options = tyro.cli(Options, prog="python -m bench speedrun", description=__doc__)
    if options.quick:
        options = replace(options, contestants=("eager", "own"), seeds=(0,), limit_iterations=4, every=2, again=True)
    options.check()
    device = choose_device(options.device)
    out = results_file("speedrun", options.quick, options.out)
    curves = out.with_name(f"{out.stem}_curves.csv")
    machine = announce(device)
    data.open_split("mnist", options.data, "train", (1, 28, 28))  # fetched before any clock runs
    races = [
        Race(
            contestant, seed, options.every, options.limit_iterations, options.limit_seconds,
            str(options.data.absolute()), str(device), 1000 if options.quick else None, began=0.0,
        )
        for seed in options.seeds for contestant in options.contestants
    ]  # fmt: skip
    row, points = rows(races[0], [Point(*[0] * len(fields(Point)))], machine)
    open_csv(out, list(row))  # not after the first hour
    open_csv(curves, list(points[0]))
    for race in races:
        print(f"{race.contestant}, seed {race.seed}:")
        if not options.again and done(read_csv(out), identity(race) | machine):
            print(f"  skipped, it has its row in {out}; --again repeats it")
            continue
        row, points = rows(race, from_cold(race), machine)
        append_csv(curves, points)
        append_csv(out, [row])
    runs = latest(read_csv(out))
    print("\n".join(table(runs)))
    plots.save(plots.speedrun(with_their_runs(read_csv(curves), runs), TARGETS), out)


def identity(race: Race) -> dict[str, str]:
    """What decides a run beside the code and the machine."""
    settings = (
        f"every {race.every} iterations; at most {race.limit_iterations} and {race.limit_seconds:g} s; "
        f"MI {MI_NATS}; held out {race.held_out}"
    )
    cut = "" if race.images is None else f"; not to be quoted: {race.images} images judged"
    return {"contestant": race.contestant, "seed": str(race.seed), "settings": settings + cut}


def rows(
    race: Race, curve: Sequence[Point], machine: Mapping[str, str]
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The row of a run that has just ended, and those of its curve; ``finished`` ties them together."""
    ended = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    run: dict[str, object] = {**identity(race), "finished": ended}
    return run | summary(race, curve) | {**machine}, [run | _rounded(asdict(point)) for point in curve]


def done(rows: Sequence[Mapping[str, str]], wanted: Mapping[str, str]) -> bool:
    """There is a row with all of ``wanted``: the same run, of the same code on the same machine."""
    return any(has(row, wanted) for row in rows)


def from_cold(race: Race) -> list[Point]:
    """The curve of a run in a fresh process, printed as it comes.

    Raises:
        UserError: the process did not end well.
    """
    curve: list[Point] = []
    with tempfile.TemporaryDirectory() as empty:
        compilers = {name: f"{empty}/{name}" for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        race = replace(race, began=time.monotonic())
        with subprocess.Popen(
            command_line(race), cwd=ROOT, env=os.environ | compilers, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    curve.append(Point(**json.loads(line)))
                    print(_line(curve[-1]))
            except BaseException:
                process.kill()
                raise
    if process.returncode or not curve:
        raise UserError(
            f"the run of {race.contestant} with seed {race.seed} ended with status {process.returncode}: the runs "
            f"before it have their rows; mend the cause above and start the same command again"
        )
    return curve


def command_line(race: Race) -> list[str]:
    """How ``bench/race.py`` is started."""
    return [sys.executable, "-m", "bench.race", json.dumps(asdict(race))]


def _line(point: Point) -> str:
    return (
        f"  {point.iteration:>6} iterations {point.seconds:>8.1f} s   c1 {point.mi_c1:.2f} nats   "
        f"error {point.error:6.2%}   test {point.test_error:.2%}"
    )


def summary(race: Race, curve: Sequence[Point]) -> dict[str, object]:
    """The row of a run: where each target was reached, and where it ended."""
    config = configuration(race)
    precision = choose_precision(choose_device(race.device), config.amp)
    row: dict[str, object] = {"batch": config.batch, "precision": format_name(precision.dtype)}
    for target in TARGETS:
        point = reached(curve, target)
        for name, key in (
            ("seconds_to", "seconds"), ("iterations_to", "iteration"), ("images_to", "images"),
            ("test_error_at", "test_error"),
        ):  # fmt: skip
            row[f"{name}_{100 * target:g}"] = NOT_REACHED if point is None else getattr(point, key)
    row = _rounded(row)
    return row | {f"last_{name}": value for name, value in _rounded(asdict(curve[-1])).items()}


def _rounded(values: Mapping[str, object]) -> dict[str, object]:
    return {key: significant(value) if isinstance(value, float) else value for key, value in values.items()}


def latest(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """On each machine, of each contestant the rows of the code and settings that ran last, the last one of each seed.

    Rows of an older commit are another contestant's under the same name: they stay in the file alone.
    """
    newest = {(machine_name(row), row["contestant"]): (row["commit"], row["settings"]) for row in rows}
    current = [row for row in rows if newest[machine_name(row), row["contestant"]] == (row["commit"], row["settings"])]
    return list({(machine_name(row), row["contestant"], row["seed"]): row for row in current}.values())


def with_their_runs(points: Sequence[dict[str, str]], runs: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The ``points`` of curves that belong to any of ``runs``, each with the columns of its run as well."""
    by_end = {(run["contestant"], run["seed"], run["finished"]): run for run in runs}
    keyed = [((point["contestant"], point["seed"], point["finished"]), point) for point in points]
    return [by_end[key] | point for key, point in keyed if key in by_end]


def table(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines: per machine, contestant and target how many seeds arrived, and the quantiles of their seconds.

    A seed that did not arrive counts as later than all others.
    """
    lines = [f"{'contestant':<12}{'error':>6}{'arrived':>10}   seconds: lowest / 20 % / median / 80 % / highest"]
    for machine, of_machine in by_machine(runs).items():
        lines.append(f"on {machine}:")
        for contestant, target in itertools.product(distinct(of_machine, "contestant"), TARGETS):
            cells = [run[f"seconds_to_{100 * target:g}"] for run in only(of_machine, contestant=contestant)]
            seconds = np.array([float("inf") if cell == NOT_REACHED else float(cell) for cell in cells])
            shown = [
                f"{value:.1f}" if np.isfinite(value) else NOT_REACHED
                for value in np.quantile(seconds, (0, 0.2, 0.5, 0.8, 1), method="higher")
            ]
            arrived = f"{int(np.isfinite(seconds).sum())} of {len(seconds)}"
            lines.append(f"{contestant:<12}{target:>6.0%}{arrived:>10}   {' / '.join(shown)}")
    return lines
