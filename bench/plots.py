"""The pictures of the benchmarks, one beside each CSV; the rows are those of the CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.measure import AnyRow, by_machine
from bench.stopwatch import PHASES

Row = Mapping[str, object]


def save(figure: Figure, csv: Path) -> None:
    """As PNG beside ``csv``."""
    path = csv.with_suffix(".png")
    figure.savefig(path, dpi=110)
    print(f"drawn to {path}")


def kernels(rows: Sequence[Row]) -> Figure:
    """Microseconds of each backend against the batch: a panel per op and set of codes."""
    ops, codes = distinct(rows, "op"), distinct(rows, "codes")
    figure = Figure(figsize=(4 * len(codes), 2.6 * len(ops)), layout="constrained")
    panels = figure.subplots(len(ops), len(codes), squeeze=False)
    for line, op in enumerate(ops):
        for column, code in enumerate(codes):
            axes = panels[line][column]
            _curves(axes, only(rows, op=op, codes=code))
            axes.set(title=f"{op}, {code} codes", ylabel="µs")
    panels[0][0].legend()
    return figure


def step(rows: Sequence[Row]) -> Figure:
    """Microseconds an image of each contestant and batch, phase by phase, and the floor as a line across its bar.

    One that has no phases, an iteration in one launch, is a bar of its median.
    """
    presets = distinct(rows, "preset")
    bars = max(len(only(rows, preset=preset)) for preset in presets)
    across = min(3, len(presets))
    down = -(-len(presets) // across)
    figure = Figure(figsize=(5.2 * across, (0.9 + 0.3 * bars) * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(presets) :]:
        axes.set_axis_off()
    for axes, preset in zip(panels, presets, strict=False):
        of_preset = only(rows, preset=preset)
        of_batches = [(row, _number(row, "batch")) for row in of_preset]
        names = [f"{row['provider']}, {n:g}" for row, n in of_batches]
        ends = [0.0] * len(names)
        for phase in PHASES:
            widths = [_number(row, f"{phase}_ms") * 1e3 / n if row[f"{phase}_ms"] else 0.0 for row, n in of_batches]
            axes.barh(names, widths, left=ends, label=phase.replace("_", ", " if phase == "data_latents" else " "))
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        whole = [
            0.0 if end else _number(row, "median") * 1e3 / n for end, (row, n) in zip(ends, of_batches, strict=True)
        ]
        if any(whole):
            axes.barh(names, whole, color="grey", label="one launch")
        for place, (row, n) in enumerate(of_batches):
            floor = _number(row, "floor_ms") * 1e3 / n
            axes.vlines(floor, place - 0.4, place + 0.4, color="black", label="floor" if not place else None)
        axes.invert_yaxis()
        axes.set(title=preset, xlabel="µs an image; contestant and batch at the left")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def throughputs(rows: Sequence[Row]) -> Figure:
    """Images a second of each provider, with the 20 % and 80 % quantiles."""
    figure = Figure(figsize=(6, 0.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    medians = [_number(row, "median") for row in rows]
    below = [median - _number(row, "p20") for median, row in zip(medians, rows, strict=True)]
    above = [_number(row, "p80") - median for median, row in zip(medians, rows, strict=True)]
    axes.errorbar(medians, [str(row["provider"]) for row in rows], xerr=[below, above], fmt="o", capsize=3)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="images/s")
    return figure


def speedrun(curves: Sequence[Row], targets: Iterable[float]) -> Figure:
    """Error on the held-out images against seconds from the cold start: a line per run, a colour per contestant.

    A panel per machine.
    """
    contestants, machines = distinct(curves, "contestant"), by_machine(curves)
    figure = Figure(figsize=(0.7 + 6.3 * len(machines), 4.5), layout="constrained")
    panels = figure.subplots(1, len(machines), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (machine, of_machine) in zip(panels, machines.items(), strict=True):
        for contestant in distinct(of_machine, "contestant"):
            colour = f"C{contestants.index(contestant)}"
            of_contestant = only(of_machine, contestant=contestant)
            for number, seed in enumerate(distinct(of_contestant, "seed")):
                run = only(of_contestant, seed=seed)
                seconds, errors = ([_number(row, name) for row in run] for name in ("seconds", "error"))
                label = f"{contestant}, {run[0]['commit']}" if number == 0 else None
                axes.plot(seconds, [100 * e for e in errors], ".-", color=colour, linewidth=0.9, label=label)
        for target in targets:
            axes.axhline(100 * target, color="grey", linestyle="--", linewidth=0.8)
        axes.set(title=machine, xlabel="seconds from the cold start, evaluations not counted", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend()
    panels[0].set(yscale="log", ylabel="error of argmax Q(c1|x) on held-out images, %")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("{x:g}")
    return figure


def _curves(axes: Axes, rows: Sequence[Row]) -> None:
    """The median of each provider, one line each, over batches that double."""
    for provider in distinct(rows, "provider"):
        mine = only(rows, provider=provider)
        axes.plot(*([_number(row, key) for row in mine] for key in ("batch", "median")), "o-", label=str(provider))
    ticks = sorted({_number(row, "batch") for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel="batch", yscale="log")


def distinct(rows: Sequence[Row], key: str) -> list[object]:
    """The values of ``key`` in the order in which they come."""
    return list(dict.fromkeys(row[key] for row in rows))


def only(rows: Sequence[AnyRow], **values: object) -> list[AnyRow]:
    """The rows that have all of ``values``."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _number(row: Row, key: str) -> float:
    return float(str(row[key]))
