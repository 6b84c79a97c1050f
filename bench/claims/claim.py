"""What a claim is: variants of a configuration, seeds, what is measured of each run, and how the outcome is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from fastinfogan.config import TrainConfig
from fastinfogan.metrics.evaluation import Group

Row = Mapping[str, str]


def as_it_is(root: Path, quick: bool) -> Path:
    """Data that the training command finds, or fetches, by itself."""
    return root


@dataclass(frozen=True)
class Number:
    """A column of a claim's table. column: of its CSV; percent: shown as such.

    alike: the column in which runs must agree for their numbers to be comparable, None where they always are.
    """

    column: str
    title: str
    percent: bool = False
    alike: str | None = None

    def shown(self, value: float) -> str:
        """``value`` as the table has it."""
        return f"{value:.2%}" if self.percent else f"{value:.3f}"


@dataclass(frozen=True)
class Claim:
    """question: what is asked, as a heading. protocol: what is to be known beside the numbers, as sentences.

    variants: name -> configuration, whose seed is replaced. seeds: one run of every variant each. groups: of
    ``python -m fastinfogan.evaluate``. numbers: the first one is the claim's. curves: names in metrics.jsonl to keep
    along the training. draw: the figure, from the rows of the runs and of their curves. shown: per variant the
    factors, such as ``traversal/azimuth``, whose best traversal is shown. prepare: makes the data below the folder that
    is given, few of them for a quick look, where there is none to fetch, and returns where they lie.
    """

    question: str
    protocol: str
    variants: Mapping[str, TrainConfig]
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]
    numbers: tuple[Number, ...]
    draw: Callable[[Sequence[Row], Sequence[Row]], Figure]
    curves: tuple[str, ...] = ()
    shown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prepare: Callable[[Path, bool], Path] = as_it_is
