"""The benchmarks run, small, as a user runs them; no figure of theirs is asserted."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.measure import in_turns, quantiles, write_csv
from bench.reference import Reference
from fastinfogan import Categorical, LatentSpec, Uniform
from tests.test_objective import TINY

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "providers"),
    [("kernels", {"reference", "torch.compile"}), ("step", {"fastinfogan fp32", "eager fp32"})],
)
def test_a_quick_run_writes_a_row_for_each_contestant(name: str, providers: set[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "bench", name, "--quick", "--device", "cpu", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["provider"] for row in rows} >= providers
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"])
        assert row["cpu"] and row["commit"] and row["torch"] == torch.__version__


def test_an_unknown_benchmark_is_one_sentence_with_those_there_are() -> None:
    finished = subprocess.run([sys.executable, "-m", "bench", "stpe"], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == ["error: there is no benchmark 'stpe': choose one of data, kernels, step"]


def test_contestants_take_turns_and_the_first_turn_only_warms_up() -> None:
    calls: list[str] = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, torch.device("cpu"))
    assert calls == ["a", "b"] * 3
    assert all(len(values) == 2 for values in seconds.values())


def test_quantiles_are_the_median_and_the_fifths() -> None:
    assert quantiles(np.arange(11.0)) == {"median": 5.0, "p20": 2.0, "p80": 8.0}


def test_csv_keeps_the_order_of_its_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "new" / "rows.csv", [{"b": 1, "a": 2}, {"a": 4, "b": 3}])
    assert (tmp_path / "new" / "rows.csv").read_text() == "b,a\n1,2\n3,4\n"


def test_the_opponent_learns() -> None:
    """An opponent that did not train would be easy to beat."""
    spec = LatentSpec(4, (Categorical(3), Uniform(1)))
    opponent = Reference(TINY, spec, device=torch.device("cpu"), lr_d=1e-2, lr_g=1e-2)
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(80):
        opponent.step(images)
    z, categories, continuous = opponent.latents(64)
    with torch.no_grad():
        _, q = opponent.discriminator(opponent.generator(z))
        bound = spec.entropies[0] - torch.nn.functional.cross_entropy(q[:, :3], categories[0]).item()
    assert bound > 0.7
    assert all(np.isfinite(opponent.last))
    assert continuous.shape == (64, 1)
