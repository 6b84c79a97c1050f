"""``python -m bench claims NAME``: train what a claim needs, judge it, and write its table, figure and paragraph.

A row per run is kept in ``bench/results/claims/NAME.csv`` as soon as it is judged, and a run that has its row is not
repeated; one that was stopped goes on from its last checkpoint. Start the same command again after an interruption, or
with more seeds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from bench import plots
from bench.claims import drawn_sets, gallery, imbalanced, mnist, report
from bench.claims.claim import Claim, Row
from bench.claims.runs import MACHINE, digest, judged, lines, trained
from bench.measure import RESULTS, ROOT, announce, has, keep_rows, machine_columns, read_csv, significant
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device

CLAIMS = {**mnist.CLAIMS, **imbalanced.CLAIMS, **drawn_sets.CLAIMS}


@dataclass(frozen=True)
class Options:
    """Reproduce a claim."""

    name: tyro.conf.Positional[str]
    """Which one; an unknown name lists all."""
    seeds: tuple[int, ...] | None = None
    """Other seeds than the claim's own."""
    variants: tuple[str, ...] | None = None
    """Some of its variants alone, by their names in its table; the table and the figure have every row all the same."""
    data: Path = Path("data")
    """Where the data sets lie or are fetched to."""
    runs: Path = Path("runs/claims")
    """Where the runs are kept; claims that need the same run share it."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    again: bool = False
    """Judge anew what has its row."""
    quick: bool = False
    """One seed of each variant, a few iterations: to see that it runs, not to quote."""


def main() -> None:
    """Run what has no row yet, seed by seed; then tell the outcome of all rows."""
    asked = "\n".join(f"  {name:<14}{claim.question}" for name, claim in CLAIMS.items())
    options = tyro.cli(Options, prog="python -m bench claims", description=f"{__doc__}\nClaims:\n\n{asked}")
    if options.name not in CLAIMS:
        raise UserError(f"there is no claim {options.name!r}: choose one of\n{asked}")
    claim, folder, runs = CLAIMS[options.name], RESULTS / "claims", options.runs
    if options.quick:
        claim, folder, runs = shrunk(claim), ROOT / "build" / "quick" / "claims", ROOT / "build" / "quick" / "runs"
        shutil.rmtree(runs, ignore_errors=True)  # what another state of the code left shows nothing
    wanted = claim.variants if options.variants is None else options.variants
    if unknown := [name for name in wanted if name not in claim.variants]:
        raise UserError(
            f"{options.name} has no variant {unknown[0]!r}: choose of {', '.join(map(repr, claim.variants))}"
        )
    if options.seeds == () or not wanted:
        raise UserError("--seeds and --variants need at least one value each, or leave them out for all of the claim's")
    device = choose_device(options.device)
    announce(device)
    out, curves = folder / f"{options.name}.csv", folder / f"{options.name}_curves.csv"
    todo = []
    for seed in options.seeds if options.seeds is not None else claim.seeds:
        for variant in wanted:
            config = replace(claim.variants[variant], seed=seed, device=str(device), amp=True)
            identity = {"variant": variant, "seed": str(seed), "configuration": digest(config)}
            done = (row for row in read_csv(out) if has(row, identity) and _answers(row, claim))
            if options.again or options.quick or not any(done):
                todo.append((config, identity))
    data = claim.prepare(options.data, options.quick).absolute() if todo else options.data
    for plain, identity in todo:
        config = replace(plain, data=data)
        print(f"{options.name}: {identity['variant']}, seed {config.seed}")
        run = trained(config, runs, machine_columns(device))
        machine = json.loads((run / MACHINE).read_text())  # that trained it, which need not be the one that judges it
        keep_rows(out, [identity | judged(run, claim.groups, config, again=options.again) | machine], identity)
        if claim.curves:
            keep_rows(curves, [identity | point for point in curve(run, claim.curves)], identity)
    rows = current(read_csv(out), claim)
    plots.save(claim.draw(rows, current(read_csv(curves), claim)), out)
    shown = gallery.best_traversals(claim, options.name, rows, runs, folder)
    text = report.paragraph(claim, options.name, rows, out.with_suffix(".png"), shown)
    out.with_suffix(".md").write_text(text)
    print(text)


def _answers(row: Row, claim: Claim) -> bool:
    """Whether ``row`` was judged by all that the claim asks for today; rows of before that was noted count as such."""
    return set(claim.groups) <= set(row.get("groups", "").split() or claim.groups)


def shrunk(claim: Claim) -> Claim:
    """``claim`` so small that it says nothing."""

    def few(config: TrainConfig) -> TrainConfig:
        return replace(config, iterations=4, log_every=2, batch=16)

    variants = {name: few(config) for name, config in claim.variants.items()}
    return replace(claim, variants=variants, seeds=(0,))


def curve(run: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """What the run logged under ``names``, step by step."""
    return [
        {"step": str(line["step"]), **{name: significant(line[name]) for name in names}}
        for line in lines(run) if all(name in line for name in names)
    ]  # fmt: skip


def current(rows: Sequence[Mapping[str, str]], claim: Claim) -> list[Mapping[str, str]]:
    """The rows of the claim's variants as they are configured now, variant by variant, seed by seed."""
    wanted = {variant: digest(replace(config, amp=True)) for variant, config in claim.variants.items()}
    found = [row for row in rows if wanted.get(row["variant"]) == row["configuration"]]
    return sorted(found, key=lambda row: (list(wanted).index(row["variant"]), int(row["seed"])))
