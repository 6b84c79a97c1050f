"""One run of a speedrun: ``python -m bench.race '{"contestant": "own", ...}'`` trains from cold and prints its curve.

Started by ``bench/speedrun.py``, which reads the clock before it starts this process: importing, opening the data,
building and compiling count. Every so many iterations the networks are judged (``bench/judge.py``); the time of that,
its imports included, is reported apart and does not count. One line of JSON per evaluation goes to stdout.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contestants import Contestant, Opponent
from bench.measure import wait
from fastinfogan import data
from fastinfogan.commands import run_command
from fastinfogan.config import PRESETS, TrainConfig
from fastinfogan.data import Decoded
from fastinfogan.errors import UserError
from fastinfogan.precision import Precision, choose_device, choose_precision

if TYPE_CHECKING:
    from bench.judge import Judge

MI_NATS = 2.2  # of ln 10 = 2.303
TARGETS = (0.10, 0.05)  # errors on the held-out images; the last one ends a run
HELD_OUT = 10_000
SHARED = "mnist-paper"  # the hyperparameters of the first three contestants


@dataclass(frozen=True)
class Race:
    """What decides one run.

    contestant: one of CONTESTANTS. every: iterations between two evaluations. limit_iterations, limit_seconds: where
    the run is given up; it never goes on past the iterations of its own preset. images: see :class:`bench.judge.Judge`.
    began: ``time.monotonic()`` before this process was started.
    """

    contestant: str
    seed: int
    every: int
    limit_iterations: int
    limit_seconds: float
    data: str
    device: str
    images: int | None
    began: float
    held_out: int = HELD_OUT


@dataclass(frozen=True)
class Point:
    """One evaluation. seconds: of training since ``began``, without any evaluation; evaluation_seconds: of all so far.

    start_seconds: until the first iteration was done. The rest is a :class:`bench.judge.Verdict`.
    """

    iteration: int
    images: int
    seconds: float
    evaluation_seconds: float
    start_seconds: float
    mi_c1: float
    error: float
    training_error: float
    test_error: float


@dataclass(frozen=True)
class Entry:
    """The preset that a contestant trains with, whether in mixed precision, and how it is made."""

    preset: str
    amp: bool
    make: Callable[[TrainConfig, Decoded, Precision], Contestant]


def _ours(config: TrainConfig, images: Decoded, precision: Precision) -> Contestant:
    from bench.ours import Ours  # the opponents' start does without what the trainer imports

    return Ours(config, images, precision)


# The reference has no flags for the objective: the paper's, that of SHARED, is all it knows.
CONTESTANTS = {
    "eager": Entry(SHARED, False, functools.partial(Opponent, tuned=False)),
    "tuned": Entry(SHARED, True, functools.partial(Opponent, tuned=True)),
    "same": Entry(SHARED, True, _ours),
    "own": Entry("mnist", True, _ours),
}


def configuration(race: Race) -> TrainConfig:
    """The preset that the contestant trains with."""
    entry = CONTESTANTS[race.contestant]
    return replace(PRESETS[entry.preset], seed=race.seed, data=Path(race.data), amp=entry.amp)


def reached(curve: Sequence[Point], target: float) -> Point | None:
    """The first evaluation that has both the information and the error."""
    return next((point for point in curve if point.mi_c1 >= MI_NATS and point.error <= target), None)


def hold_out(split: Decoded, n: int) -> tuple[Decoded, Decoded]:
    """``split`` without its last ``n`` images, and those.

    Raises:
        UserError: that would leave nothing to train on.
    """
    if not 0 < n < len(split):
        raise UserError(f"cannot hold out {n:,} of the {len(split):,} images of {split.name}: choose fewer")
    assert split.labels is not None
    return (
        replace(split, pixels=split.pixels[:-n], labels=split.labels[:-n]),
        replace(split, name=f"{split.name}, held out", pixels=split.pixels[-n:], labels=split.labels[-n:]),
    )


def run(race: Race) -> Iterator[Point]:
    """Train, and judge every so often, to the last target or to a limit."""
    config, device = configuration(race), choose_device(race.device)
    tables = config.network_tables
    split = data.open_split(config.dataset, config.data, "train", tables.image, tables=config.tables)
    assert isinstance(split, Decoded)
    training, held_out = hold_out(split, race.held_out)
    precision = choose_precision(device, config.amp)
    contestant = CONTESTANTS[race.contestant].make(config, replace(training, labels=None), precision)
    limit = min(race.limit_iterations, config.iterations)
    judge: Judge | None = None
    curve: list[Point] = []
    started = judged = 0.0
    for iteration in range(1, limit + 1):
        contestant.advance()
        if iteration == 1:
            wait(device)
            started = time.monotonic() - race.began
        if iteration % race.every and iteration != limit:
            continue
        wait(device)
        arrived = time.monotonic()
        judge = judge or _judge(config, training, held_out, race.images)
        verdict = judge(*contestant.networks())
        seconds, judged = arrived - race.began - judged, judged + time.monotonic() - arrived
        curve.append(Point(iteration, iteration * config.batch, seconds, judged, started, **asdict(verdict)))
        yield curve[-1]
        if reached(curve, TARGETS[-1]) or seconds >= race.limit_seconds:
            return


def _judge(config: TrainConfig, training: Decoded, held_out: Decoded, images: int | None) -> Judge:
    from bench.judge import Judge  # what only judging needs is imported within its own time

    return Judge(config, training, held_out, images)


def main() -> None:
    """The run that the one argument describes."""
    curve = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what a trainer has to say
        for point in run(Race(**json.loads(sys.argv[1]))):
            print(json.dumps(asdict(point)), file=curve, flush=True)


if __name__ == "__main__":
    run_command(main)
