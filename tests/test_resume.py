"""A run stopped and resumed is bitwise the unbroken one, and takes what may be changed in between."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from short_runs import (
    MakeConfig,
    MakeTrainer,
    after,
    assert_same_end,
    fp16_trains_here,
    metrics,
    quiet,
    saved_steps,
    stop_after,
)

from fastinfogan import checkpoint, rivals, train
from fastinfogan.errors import UserError
from fastinfogan.trainer import Stopped, Trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trunk_mi": False, "codes": ("cat:3", "gaussian:1", "cat:4"), "noise_prior": "normal", "keep": 1},
        {"invariance": 0.5, "continuous_weight": 0.1},
        {"learn_prior": True, "invariance": 0.5},
        {"invariance": 0.5, "rivals": 2},  # rounds after 2, 3, 4, 5 and 6 iterations
        {"spectral_norm": True},
        {"decay": 1.0},
        {"decay": 0.5, "invariance": 0.5, "rivals": 2},
    ],
    ids=[
        "trunk gets MI",
        "Q learns with G",
        "invariance",
        "learnt prior",
        "rivals",
        "spectral norm",
        "falling rates",
        "falling rates and rivals",
    ],
)
def test_resumed_run_is_bitwise_the_unbroken_one(
    tmp_path: Path,
    tiny_config: MakeConfig,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    changes: dict[str, Any],
) -> None:
    if dtype == torch.float16 and not fp16_trains_here():
        pytest.skip("this CPU has no float16 convolutions")
    monkeypatch.setattr(rivals, "CLEARLY", math.inf)  # the best head is chosen, however little better it is
    config = tiny_config(**changes)
    assert make_trainer(config, tmp_path / "unbroken", dtype).train(quiet) == Stopped(11, None)

    broken, start = tmp_path / "broken", 0
    for stop in (3, 6, 8):  # between two readings, twice; and at one. Five batches are an epoch
        part = make_trainer(config, broken, dtype, step=start)
        if start:
            part.restore(checkpoint.load(broken))
        stop_after(stop, part)
        assert part.train(quiet) == Stopped(stop, signal.SIGTERM)
        start = stop
    last = make_trainer(config, broken, dtype, step=start)
    last.restore(checkpoint.load(broken))
    assert last.train(quiet) == Stopped(11, None)
    assert_same_end(tmp_path / "unbroken", broken, 11)
    assert [line["step"] for line in metrics(broken)] == [4, 8, 11]
    names = checkpoint.load(broken).tensors
    assert {name.split(".")[0] for name in names} == {
        "generator", "discriminator", "generator_optimiser", "discriminator_optimiser", "metrics",
        *(["scaler"] if dtype == torch.float16 else []),
    }  # fmt: skip
    assert any("running_var" in name for name in names) and any("exp_avg_sq" in name for name in names)


def test_resumed_run_is_bitwise_the_unbroken_one_on_two_threads(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    torch.set_num_threads(2)
    config = tiny_config(iterations=3)
    make_trainer(config, tmp_path / "unbroken").train(quiet)
    first = make_trainer(config, tmp_path / "broken")
    stop_after(2, first)
    first.train(quiet)
    second = make_trainer(config, tmp_path / "broken", step=2)
    second.restore(checkpoint.load(tmp_path / "broken"))
    second.train(quiet)
    assert_same_end(tmp_path / "unbroken", tmp_path / "broken", 3)


def test_a_run_killed_without_warning_resumes_from_its_last_checkpoint_bitwise(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    config = tiny_config(save_every=5, log_every=2)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    make_trainer(config, unbroken).train(quiet)

    class PowerCut(BaseException):
        pass

    def cut() -> None:
        raise PowerCut

    part = make_trainer(config, killed)
    after(9, part, cut)
    with pytest.raises(PowerCut):
        part.train(quiet)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss/')
    assert saved_steps(killed) == [5]
    rest = make_trainer(config, killed, step=5)
    assert [line["step"] for line in metrics(killed)] == [2, 4]  # what came after the checkpoint is dropped
    rest.restore(checkpoint.load(killed))
    rest.train(quiet)
    assert_same_end(unbroken, killed, 11)


@pytest.mark.parametrize("placement", ["stream", "resident"])
def test_resumed_run_on_image_files_is_bitwise_the_unbroken_one(
    tmp_path: Path, photos: Path, tiny_networks: None, command: Command, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    flags = f"--dataset folder --data {photos} --placement {placement} --noise 4 --codes cat:3 uniform:1 --batch 5"
    flags += " --iterations 7 --log-every 3 --device cpu --flip"
    assert command(train, *flags.split(), "--run-dir", tmp_path / "unbroken").code == 0
    iterate = Trainer.iteration

    def stopping(self: Trainer, step: int) -> None:
        iterate(self, step)
        if step + 1 == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iteration", stopping)
        ended = command(train, *flags.split(), "--run-dir", tmp_path / "broken")
    assert ended.code == 130 and saved_steps(tmp_path / "broken") == [4]
    ended = command(train, "--resume", tmp_path / "broken")
    assert ended.code == 0 and "resuming at step 4 from" in ended.out
    assert_same_end(tmp_path / "unbroken", tmp_path / "broken", 7)


def test_another_architecture_is_not_restored(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    make_trainer(tiny_config(iterations=2), tmp_path / "run").train(quiet)
    other = make_trainer(tiny_config(codes=("cat:11", "uniform:2")), tmp_path / "other")
    with pytest.raises(UserError, match=r"is of another architecture: generator\.blocks\.0\.linear\.weight"):
        other.restore(checkpoint.load(tmp_path / "run"))


@pytest.mark.parametrize("changes", [{"invariance": 0.0}, {"trunk_mi": False, "invariance": 0.0}, {"lr_d": 1e-5}])
def test_a_run_can_be_resumed_with_another_objective(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, changes: dict[str, Any]
) -> None:
    first = make_trainer(tiny_config(invariance=1.0), tmp_path)
    stop_after(6, first)
    first.train(quiet)
    config = tiny_config(**{"invariance": 1.0} | changes)
    second = make_trainer(config, tmp_path, step=6)
    second.restore(checkpoint.load(tmp_path))
    assert second.discriminator_phase.optimiser.param_groups[0]["lr"] == config.lr_d
    assert second.train(quiet) == Stopped(11, None)
    assert [line["step"] for line in metrics(tmp_path)] == [4, 8, 11]
