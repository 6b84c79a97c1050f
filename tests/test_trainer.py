"""What the loop reads, draws and saves at its intervals, and how it ends when numbers or disks fail."""

from __future__ import annotations

import errno
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from short_runs import MakeConfig, MakeTrainer, after, metrics, quiet, saved_steps

from fastinfogan import checkpoint, figures, trainer
from fastinfogan.errors import UserError
from fastinfogan.rivals import ROUNDS
from fastinfogan.run_metrics import Metrics
from fastinfogan.trainer import STRETCH

CPU = torch.device("cpu")

CPU = torch.device("cpu")


def test_the_end_is_saved_though_the_interval_is_longer_than_the_run(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    make_trainer(tiny_config(iterations=3, log_every=50, save_every=10_000), tmp_path).train(quiet)
    assert saved_steps(tmp_path) == [3] and [line["step"] for line in metrics(tmp_path)] == [3]


def test_intervals_say_when_there_are_checkpoints_figures_and_readings(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    said: list[str] = []
    config = tiny_config(iterations=10, log_every=3, figure_every=5, save_every=4, keep=9)
    made = make_trainer(config, tmp_path)
    made.train(said.append)
    assert saved_steps(tmp_path) == [4, 8, 10]
    assert [line["step"] for line in metrics(tmp_path)] == [3, 6, 9, 10] and len(said) == 4
    assert said[0].split()[0] == "3/10" and "MI c1 " in said[0] and "/2.30" in said[0] and "images/s" in said[0]
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("samples", "traversal-c1", "traversal-c2", "traversal-c3")
    assert drawn == {f"{name}-{step:08d}.png" for name in names for step in (5, 10)}
    assert made.generator.training and made.discriminator.training


def test_a_gpu_stops_at_every_interval(tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer) -> None:
    every = {"log_every": 30, "figure_every": 40, "save_every": 11, "evaluate_every": 13}
    made = make_trainer(tiny_config(iterations=100, **every), tmp_path)
    made.precision = replace(made.precision, device=torch.device("cuda"))
    made.iteration = lambda _: None  # type: ignore[method-assign]
    stops = [0]
    while made.step < 100:
        made.advance()
        stops.append(made.step)
    assert {step for step in range(1, 101) if any(step % one == 0 for one in every.values())} <= set(stops)
    assert max(end - start for start, end in itertools.pairwise(stops)) <= STRETCH


def test_readings_are_means_of_what_the_iterations_report(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    config = tiny_config(iterations=4, log_every=2)
    made = make_trainer(config, tmp_path)
    seen: list[torch.Tensor] = []
    add = made.metrics.add
    made.metrics.add = lambda step, values: (seen.append(values.clone()), add(step, values))[1]  # type: ignore[method-assign]
    made.train(quiet)
    lines = metrics(tmp_path)
    for line, pair in zip(lines, (seen[:2], seen[2:]), strict=True):
        means = dict(zip(made.metrics.names, torch.stack(pair).double().mean(0).tolist(), strict=True))
        del means["loss/g_real"]
        assert {name: line[name] for name in means} == pytest.approx(means)
        assert line["mi/total"] == pytest.approx(line["mi/c1"] + line["mi/c2"] + line["mi/c3"])
        assert line["loss/c1"] + line["mi/c1"] == pytest.approx(2.302585)  # H(c) - E[-log Q] in nats
        assert line["loss/c2"] + line["mi/c2"] == pytest.approx(0.693147)


def test_images_per_second_are_those_since_the_last_reading(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is read at the start, and twice at a reading: a second from the one before to its end."""
    clock = itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    config = tiny_config(iterations=7, log_every=2)
    make_trainer(config, tmp_path).train(quiet)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in lines] == [2 * 8, 2 * 8, 2 * 8, 1 * 8]


@pytest.mark.parametrize(("spectral_norm", "advice"), [(False, "--spectral-norm"), (True, "a lower --lr-d")])
def test_a_discriminator_that_has_won_is_told_of_once(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, spectral_norm: bool, advice: str
) -> None:
    losses = [0.02, 0.2, 0.03, 0.04, 0.02, 0.3, 0.3]
    made = make_trainer(tiny_config(iterations=len(losses), log_every=1, spectral_norm=spectral_norm), tmp_path)
    add = made.metrics.add

    def as_if(step: torch.Tensor, values: torch.Tensor) -> None:
        values[[made.metrics.names.index(f"loss/d_{rows}") for rows in ("real", "fake")]] = losses[int(step)] / 2
        add(step, values)

    made.metrics.add = as_if  # type: ignore[method-assign]
    said: list[str] = []
    made.train(said.append)
    told = [index for index, line in enumerate(said) if line.startswith("D tells real images")]
    assert told == [4], said  # behind the reading of step 4, the second in a row
    assert "(0.04 nats, 1.39 is chance)" in said[4] and said[4].endswith(f"start again with {advice}")


def test_the_first_value_that_is_not_finite_is_told_with_its_step() -> None:
    sums = Metrics(["a", "b", "c"], CPU)
    for step, values in enumerate([(1.0, 2, 3), (1, 2, float("inf")), (float("nan"), 2, 3), (1, 2, float("nan"))]):
        sums.add(step, torch.tensor(values))
        assert sums.first_not_finite() == (None if step == 0 else ("c", 2))


@pytest.mark.parametrize(("part", "term"), [("trunk", "loss/d_real"), ("recognition_head", "loss/c1")])
def test_a_loss_that_is_not_finite_stops_with_step_term_and_last_good_checkpoint(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, part: str, term: str
) -> None:
    made = make_trainer(tiny_config(save_every=4, log_every=4, trunk_mi=False), tmp_path)
    poisoned = next(getattr(made.discriminator, part).parameters())
    after(5, made, lambda: poisoned.data.fill_(float("nan")))
    with pytest.raises(UserError) as raised:
        made.train(quiet)
    said = str(raised.value)
    assert said.startswith(f"{term} became not finite at step 6: the last good checkpoint is {tmp_path}/checkpoints/")
    assert "step-00000004.safetensors; resume from it with a lower --lr-d or --lr-g" in said
    assert saved_steps(tmp_path) == [4] and [line["step"] for line in metrics(tmp_path)] == [4]


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    next(made.generator.parameters()).data.fill_(float("inf"))
    remedy = r"start again with a lower --lr-d or --lr-g$"  # and not without --amp, as it computes in float32
    with pytest.raises(UserError, match=f"became not finite at step 1: there is no checkpoint yet; {remedy}"):
        made.train(quiet)
    assert saved_steps(tmp_path) == []


def test_heads_that_are_not_finite_are_told_with_their_step_before_one_is_chosen(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(invariance=0.5, rivals=2, log_every=1000), tmp_path)
    after(1, made, lambda: next(made.discriminator.trunk.parameters()).data.fill_(float("nan")))
    with pytest.raises(UserError, match="became not finite at step 2: there is no checkpoint yet; start again"):
        made.train(quiet)


def test_rivals_that_are_retired_stay_so_when_a_finished_run_goes_on(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    changes: dict[str, Any] = {"invariance": 0.5, "rivals": 2}
    make_trainer(tiny_config(**changes, iterations=10), tmp_path).train(quiet)
    for start, end in ((10, 40), (40, 100)):  # before the last round of either run
        longer = make_trainer(tiny_config(**changes, iterations=end), tmp_path, step=start)
        longer.restore(checkpoint.load(tmp_path))
        assert longer.discriminator_phase.heads == [longer.discriminator.recognition_head]
        before = [weight.clone() for weight in longer.discriminator.rivals.parameters()]
        longer.train(quiet)
        assert all(torch.equal(*pair) for pair in zip(before, longer.discriminator.rivals.parameters(), strict=True))


def test_a_run_that_is_shortened_to_before_where_it_stands_has_no_rivals_any_more(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    """Their last round would never come."""
    changes: dict[str, Any] = {"invariance": 0.5, "rivals": 2}
    long = make_trainer(tiny_config(**changes, iterations=100), tmp_path)
    for step in range(12):
        long.iteration(step)
    long.step = 12
    long.save()
    assert len(long.discriminator_phase.heads) == 3
    shorter = make_trainer(tiny_config(**changes, iterations=16), tmp_path, step=12)
    shorter.restore(checkpoint.load(tmp_path))
    assert shorter.discriminator_phase.heads == [shorter.discriminator.recognition_head]


def test_the_heads_are_varied_otherwise_in_every_round_and_the_choice_is_told(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    def rounds(seed: int) -> list[int]:
        made = make_trainer(tiny_config(invariance=0.5, rivals=2, iterations=20, seed=seed), tmp_path / str(seed))
        seeds: list[int] = []
        made.discriminator_phase.rivalry.vary = seeds.append  # type: ignore[method-assign]
        made.discriminator_phase.rivalry.choose = lambda: (2, [0.5, 0.4, 0.25])  # type: ignore[method-assign]
        made.train(told.append)
        return seeds

    told: list[str] = []
    found = [*rounds(3), *rounds(4)]
    assert len(set(found)) == len(found) == 2 * (len(ROUNDS) - 1)
    assert [line for line in told if "rival" in line] == 2 * len(ROUNDS) * [
        "Q takes the head of rival 2: of all that its values can tell it lacks 0.250 nats, Q's own head 0.500"
    ]


def test_pictures_of_a_run_are_in_the_range_of_its_networks(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(figures, "save_figures", lambda *arguments: seen.append(arguments[2]))
    for tables in ("mnist", "celeba"):
        make_trainer(tiny_config(tables=tables), tmp_path / tables).draw_figures("now")
    assert seen == [(0.0, 1.0), (-1.0, 1.0)]


def test_a_poisoned_state_is_not_saved(tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer) -> None:
    made = make_trainer(tiny_config(save_every=4, log_every=1000, keep=1), tmp_path)
    weight = made.generator.blocks[0].linear.weight
    after(8, made, lambda: weight.data[0, 0].fill_(float("nan")))  # after the losses of step 8 were seen to be finite
    with pytest.raises(
        UserError, match=r"generator\.blocks\.0\.linear\.weight is not finite after step 8: the last good .*-00000004\."
    ):
        made.train(quiet)
    assert saved_steps(tmp_path) == [4]


@pytest.mark.parametrize("where", ["metrics", "figures"])
def test_a_disk_that_fills_up_between_checkpoints_is_told_with_the_last_one(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = make_trainer(tiny_config(save_every=2, figure_every=3, log_every=3), tmp_path)
    if where == "metrics":
        monkeypatch.setattr(made.run_directory, "log", full)
    else:
        monkeypatch.setattr(figures, "save_figures", full)
    with pytest.raises(UserError, match=rf"No space left.*{tmp_path}/checkpoints/step-00000002.*--resume {tmp_path}"):
        made.train(quiet)
    assert checkpoint.load(tmp_path).step == 2


def test_a_disk_that_fills_up_before_any_checkpoint_asks_for_another_start(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(tiny_config(log_every=1), tmp_path)
    monkeypatch.setattr(made.run_directory, "log", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError, match=r"there is no checkpoint yet; free some space and start again$"):
        made.train(quiet)
