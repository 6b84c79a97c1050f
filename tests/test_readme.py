"""What the README shows is true of the code beside it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from bench.__main__ import BENCHES
from bench.claims import drawn_sets
from bench.claims.command import current
from bench.claims.report import runs
from bench.measure import RESULTS, read_csv
from fastinfogan.config import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {"batches": [torch.rand(4, 1, 28, 28)] * 2}
    exec(example, names)
    assert names["step"] == 1


def test_every_command_exists() -> None:
    for module, name in set(re.findall(r"python -m (fastinfogan\.\w+|bench) ?(\w*)", README)):
        assert importlib.util.find_spec(module), module
        assert module != "bench" or name in BENCHES


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z][\w-]*)(?=[`\s])", README)) - {"each"} <= targets


def test_every_picture_and_table_exists() -> None:
    for path in re.findall(r"(bench/results/[\w/.-]+\.\w+)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", [name for name in drawn_sets.CLAIMS if (RESULTS / "claims" / f"{name}.csv").exists()])
def test_every_run_on_a_drawn_set_is_shown(name: str) -> None:
    claim = drawn_sets.CLAIMS[name]
    rows = current(read_csv(RESULTS / "claims" / f"{name}.csv"), claim)
    assert rows and "\n".join(runs(claim, rows)) in README


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets_is_theirs(name: str) -> None:
    config = PRESETS[name]
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", README, re.MULTILINE)
    _table, noise, _codes, rates, _weights, invariance, iterations = (cell.strip() for cell in row.split("|"))
    assert noise == str(config.noise)
    assert rates == f"{config.lr_d:g}, {config.lr_g:g}"
    assert invariance == f"{config.invariance:g}"
    assert iterations == f"{config.iterations:,}"


@pytest.mark.parametrize("page", ["README.md", "bench/NOTES.md"])
def test_every_link_leads_to_a_heading(page: str) -> None:
    notes = (ROOT / "bench/NOTES.md").read_text()
    headings = re.findall(r"^#+ (.*)$", notes, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\((?:bench/NOTES\.md)?#([^)]*)\)", (ROOT / page).read_text())
    assert links and set(links) <= anchors
