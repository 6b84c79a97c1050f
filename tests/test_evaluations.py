"""Evaluations beside training: right, logged, and without any influence on the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from short_runs import MakeConfig, MakeTrainer, quiet

from fastinfogan import train
from fastinfogan.errors import UserError
from fastinfogan.metrics import evaluation
from fastinfogan.metrics.evaluation import evaluate
from fastinfogan.networks import Generator


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> what was found, of the lines that evaluations left in metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "eval/mi/total" in line}


def test_an_evaluation_is_of_the_step_that_it_is_logged_with(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    make_trainer(tiny_config(iterations=6, evaluate_every=3), tmp_path / "watched").train(quiet)
    found = evaluations(tmp_path / "watched")
    assert list(found) == [3, 6]
    for step, line in found.items():
        config = tiny_config(iterations=step)
        made = make_trainer(config, tmp_path / f"until-{step}")
        made.train(quiet)
        alone = evaluate(config, made.generator, made.discriminator, step)
        expected = {f"eval/mi/{name}": nats for name, nats in alone.information.items()}
        expected |= {"eval/error/c1": alone.clusterings["c1"].error, "eval/nmi/c1": alone.clusterings["c1"].nmi}
        assert line == {"step": step, **expected}


def test_an_evaluation_is_logged_at_the_next_reading_after_it_is_done(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at the end of the run, which may be a day away."""
    made = make_trainer(tiny_config(iterations=6, evaluate_every=5, log_every=1), tmp_path)
    made.config = replace(made.config, evaluate_every=2)
    start = made.evaluations.start

    def at_once(step: int, *others: Any) -> None:
        if step == 2:
            start(step, *others)
            running = made.evaluations._running
            assert running is not None
            running[1].result()

    monkeypatch.setattr(made.evaluations, "start", at_once)
    made.train(quiet)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 2, 4, 5, 6]


def test_evaluations_change_nothing_in_the_run(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    states = []
    for every in (0, 1):
        made = make_trainer(tiny_config(evaluate_every=every), tmp_path / str(every))
        made.train(quiet)
        states.append(made.state())
    assert len(evaluations(tmp_path / "1")) == 11 and not evaluations(tmp_path / "0")
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.fixture(params=[(evaluation, "evaluate"), (Generator, "__deepcopy__")], ids=["evaluate", "copy"])
def told_of(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_config: MakeConfig,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Exception], list[str]]:
    """``told_of(error)``: what a run says of its two evaluations where a step of them raises ``error``."""

    def run(error: Exception) -> list[str]:
        def broken(*_: object) -> None:
            raise error

        said: list[str] = []
        made = make_trainer(tiny_config(iterations=4, evaluate_every=2), tmp_path)
        monkeypatch.setattr(*request.param, broken, raising=False)
        assert made.train(said.append).step == 4
        return [line for line in said if "could not be evaluated" in line]

    return run


@pytest.mark.parametrize("error", [UserError, OSError, torch.OutOfMemoryError, MemoryError])
def test_an_evaluation_that_cannot_be_made_is_told_of_and_training_goes_on(
    error: type[Exception], told_of: Callable[[Exception], list[str]]
) -> None:
    assert told_of(error("the test images are gone")) == [
        f"step {step} could not be evaluated, training goes on: the test images are gone" for step in (2, 4)
    ]


def test_a_bug_in_an_evaluation_costs_no_run_and_shows_where_it_is(told_of: Callable[[Exception], list[str]]) -> None:
    told = told_of(ValueError("two lengths that do not fit"))
    assert [line.split(" could")[0] for line in told] == ["step 2", "step 4"]
    for line in told:
        assert "Traceback" in line and "in broken" in line and line.endswith("ValueError: two lengths that do not fit")


def test_the_end_of_a_run_is_evaluated_once(
    tmp_path: Path, tiny_networks: None, tiny_flags: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    judge = evaluation.evaluate
    for module in (train, evaluation):
        monkeypatch.setattr(module, "evaluate", lambda *a: (steps.append(a[3]), judge(*a))[1])
    for every, evaluated in ((3, [3, 6]), (4, [4, 6])):
        run = tmp_path / str(every)
        assert command(train, *tiny_flags, "--evaluate-every", every, "--run-dir", run).code == 0
        assert steps == evaluated
        assert json.loads((run / "evaluation.json").read_text())["step"] == 6
        steps.clear()
