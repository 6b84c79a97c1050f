"""A figure in the paper's form for a claim: the traversal of the code that took a factor up, of the best run.

The paper shows one run; here the table beside it has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench.claims.claim import Claim, Row
from bench.claims.runs import best_column, code_column, home
from bench.plots import only


@dataclass(frozen=True)
class Shown:
    """A picture and what it is of."""

    picture: Path
    caption: str


def best_traversals(claim: Claim, name: str, rows: Sequence[Row], runs: Path, folder: Path) -> list[Shown]:
    """The pictures that ``claim.shown`` asks for, copied from the ``runs`` to ``folder`` as ``name-...png``.

    Where a run is not on this machine, the picture that it left in ``folder`` before stands; each says inside which run
    and code it is of, so that none stands for another one's.
    """
    found = []
    for variant, factors in claim.shown.items():
        for factor in factors:
            judged = [row for row in only(rows, variant=variant) if row.get(code_column(factor))]
            if not judged:
                continue
            row = max(judged, key=lambda row: float(row[best_column(factor)]))
            code, seed, strength = row[code_column(factor)], row["seed"], float(row[best_column(factor)])
            run = home(replace(claim.variants[variant], seed=int(seed)), runs)
            of_run = run / "figures" / f"traversal-{code}-final.png"
            picture = folder / f"{_slug(f'{name} {variant} {factor}')}.png"
            subject = f"{code} of {run.name}"
            if of_run.exists():
                stamp(of_run, picture, subject)
            if picture.exists() and subject_of(picture) == subject:
                best = f"the best of {len(judged)} runs" if len(judged) > 1 else "the only run"
                group, column = factor.split("/", 1)
                unit = "nats about" if group == "disentanglement" else "rank correlation with"
                caption = f"{variant}: {code} of seed {seed}, {best}, {strength:.2f} {unit} {column}"
                found.append(Shown(picture, caption))
    return found


def stamp(source: Path, picture: Path, subject: str) -> None:
    """``source`` as ``picture``, a PNG that says inside what it is of."""
    written = PngInfo()
    written.add_text("subject", subject)
    with Image.open(source) as opened:
        opened.save(picture, pnginfo=written)


def subject_of(picture: Path) -> str | None:
    """What a picture that :func:`stamp` has made is of."""
    with Image.open(picture) as opened:
        return opened.info.get("subject")


def _slug(text: str) -> str:
    """``text`` as the name of a file: lower-case words with hyphens between them."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", "")))
