"""How a claim's outcome is told: a table over seeds, a paragraph beside it, and the figures that claims share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.claims.claim import Claim, Number, Row
from bench.claims.gallery import Shown
from bench.measure import by_machine
from bench.plots import distinct, only
from fastinfogan.metrics.evaluation import METRICS


def values(rows: Sequence[Row], column: str) -> np.ndarray:
    """The numbers of ``column`` in the rows that have one."""
    return np.array([float(row[column]) for row in rows if row.get(column) not in (None, "", "nan")])


def table(claim: Claim, rows: Sequence[Row]) -> list[str]:
    """Markdown: a line per variant, each number as median (lowest to highest) over its seeds."""
    numbers = [number for number in claim.numbers if len(values(rows, number.column))]
    lines = [f"| | seeds | {' | '.join(number.title for number in numbers)} |", "|---" * (2 + len(numbers)) + "|"]
    for variant in claim.variants:
        if mine := only(rows, variant=variant):
            cells = [" / ".join(spreads(number, mine)) for number in numbers]
            lines.append(f"| {variant} | {len(mine)} | {' | '.join(cells)} |")
    return lines


def runs(claim: Claim, rows: Sequence[Row]) -> list[str]:
    """Markdown: a line per run, with each number and the information bound of each code."""
    numbers = [number for number in claim.numbers if len(values(rows, number.column))]
    bounds = [column for column in rows[0] if column.startswith("information/c")]
    titles = [*(number.title for number in numbers), *(["bound per code, nats"] if bounds else [])]
    lines = [f"| | seed | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for row in sorted(rows, key=lambda row: (list(claim.variants).index(row["variant"]), int(row["seed"]))):
        cells = [spread(number, values([row], number.column)) for number in numbers]
        cells += [" ".join(f"{value:.2f}" for column in bounds for value in values([row], column))] if bounds else []
        lines.append(f"| {row['variant']} | {row['seed']} | {' | '.join(cells)} |")
    return lines


def comparable(number: Number, rows: Sequence[Row]) -> list[list[Row]]:
    """``rows`` that have ``number``, apart where one cannot be compared with the other."""
    those = [row for row in rows if len(values([row], number.column))]
    if number.alike is None:
        return [those]
    return [only(those, **{number.alike: value}) for value in distinct(those, number.alike)]


def spreads(number: Number, rows: Sequence[Row]) -> list[str]:
    """:func:`spread` of each part of ``rows`` that can be compared, with its size where there are several."""
    parts = comparable(number, rows)
    counts = [f" of {len(part)}" if len(parts) > 1 else "" for part in parts]
    found = [spread(number, values(part, number.column)) + count for part, count in zip(parts, counts, strict=True)]
    return found or [spread(number, np.array([]))]


def spread(number: Number, found: np.ndarray) -> str:
    """``median (lowest to highest)``; a single value stands alone."""
    if not len(found):
        return "not measured"
    middle = number.shown(float(np.median(found)))
    if len(found) == 1:
        return middle
    return f"{middle} ({number.shown(float(found.min()))} to {number.shown(float(found.max()))})"


def paragraph(claim: Claim, name: str, rows: Sequence[Row], picture: Path, shown: Sequence[Shown] = ()) -> str:
    """The Markdown file of a claim: question, tables, protocol, failures, machine, figure, traversals."""
    iterations = {claim.variants[row["variant"]].iterations for row in rows}
    failures = [f"{row['variant']}, seed {row['seed']}: {row['failure']}" for row in rows if _failed(row)]
    times = [f"{_time(claim, mine)} on {machine}" for machine, mine in by_machine(rows).items()]
    torches, commits = (", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("torch", "commit"))
    told = [
        f"# {claim.question}",
        "\n".join(table(claim, rows)),
        f"Median (lowest to highest) over seeds. {claim.protocol}",
        "\n".join(runs(claim, rows)),
        f"{' or '.join(f'{count:,}' for count in sorted(iterations))} iterations; {'; '.join(times)}; torch {torches}, "
        f"commit {commits}. Again: `python -m bench claims {name}`.",
    ]
    if any(len(comparable(number, only(rows, variant=v))) > 1 for number in claim.numbers for v in claim.variants):
        told.append(
            "Numbers with a / between them are of runs judged by feature networks that two machines trained for "
            "themselves: they are not in the same unit."
        )
    judges = Counter(row.get("judge", "") for row in rows)
    if len(judges) > 1:
        told.append(
            f"{judges.total() - judges[str(METRICS)]} of {judges.total()} runs were judged by earlier metrics: --again "
            f"judges anew those that still lie in runs/claims."
        )
    if "clustering" in claim.groups:
        told.append(
            f"Runs whose categories are not one per label: {len(failures)} of {len(rows)}"
            + (f" ({'; '.join(failures)})." if failures else ".")
        )
    told.append(f"![{claim.question}]({picture.name})")
    for one in shown:
        told.append(f"{one.caption[0].upper()}{one.caption[1:]}:\n\n![{one.caption}]({one.picture.name})")
    return "\n\n".join(told) + "\n"


def _time(claim: Claim, rows: Sequence[Row]) -> str:
    """How long a run takes to train, from the rows of one machine: those of as many images together."""
    of_images: dict[int, list[Row]] = {}
    for row in rows:
        config = claim.variants[row["variant"]]
        of_images.setdefault(config.iterations * config.batch, []).append(row)
    told = []
    for images, mine in sorted(of_images.items()):
        rates = values(mine, "images_per_second")
        seconds = np.median(images / rates)
        told.append(f"{seconds:,.0f} s of training a run (median of {len(mine)}; {np.median(rates):,.0f} images/s)")
    return " or ".join(told)


def _failed(row: Row) -> bool:
    return row.get("failure", "none") not in ("none", "")


def bands(curves: Sequence[Row], column: str, label: str, ceiling: float | None = None) -> Figure:
    """``column`` against iterations: a colour per variant, the median of its seeds, their range shaded."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for index, variant in enumerate(distinct(curves, "variant")):
        mine = only(curves, variant=variant)
        runs = [only(mine, seed=seed) for seed in distinct(mine, "seed")]
        shared = min(len(run) for run in runs)
        steps = values(runs[0][:shared], "step")
        heights = np.stack([values(run[:shared], column) for run in runs])
        axes.fill_between(steps, heights.min(0), heights.max(0), color=f"C{index}", alpha=0.2, linewidth=0)
        axes.plot(steps, np.median(heights, 0), color=f"C{index}", label=f"{variant}, {len(runs)} seeds")
    if ceiling is not None:
        axes.axhline(ceiling, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlabel="iteration", ylabel=label)
    axes.legend()
    return figure


def dotted(numbers: Sequence[Number]) -> Callable[[Sequence[Row], Sequence[Row]], Figure]:
    """A claim's ``draw`` that shows ``numbers`` as :func:`dots`."""
    return lambda rows, _: dots(rows, numbers)


def dots(rows: Sequence[Row], numbers: Sequence[Number]) -> Figure:
    """A panel per number: a dot per run, a line per variant, and a bar at the median of runs that can be compared."""
    numbers = [number for number in numbers if len(values(rows, number.column))]
    variants = distinct(rows, "variant")
    figure = Figure(figsize=(1.6 + 3 * len(numbers), 1.1 + 0.42 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(numbers), squeeze=False, sharey=True)[0]
    for axes, number in zip(panels, numbers, strict=True):
        for place, variant in enumerate(variants):
            found = values(only(rows, variant=variant), number.column) * (100 if number.percent else 1)
            axes.plot(found, np.full(len(found), place), "o", color=f"C{place}", alpha=0.6)
            if len(found) and len(comparable(number, only(rows, variant=variant))) == 1:
                axes.vlines(np.median(found), place - 0.3, place + 0.3, color="black")
        axes.set(xlabel=f"{number.title}, %" if number.percent else number.title, yticks=range(len(variants)))
        axes.set_yticklabels(variants)
        axes.set_ylim(len(variants) - 0.5, -0.5)
    return figure
