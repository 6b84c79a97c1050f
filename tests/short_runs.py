"""Training runs of a few iterations: one that stops at a step, what it left behind, two that end alike."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from fastinfogan import checkpoint
from fastinfogan.config import TrainConfig
from fastinfogan.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
MakeTrainer = Callable[..., Trainer]


def fp16_trains_here() -> bool:
    try:
        with torch.autocast("cpu", torch.float16):
            F.conv2d(torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 3, 3)).sum().backward()
    except RuntimeError:
        return False
    return True


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def saved_steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in sorted((folder / "checkpoints").glob("*"))]


def after(step: int, made: Trainer, act: Callable[[], object]) -> None:
    """Let ``act`` happen during iteration number ``step``, counted from 1."""
    iterate = made.iteration

    def iteration(number: int) -> None:
        iterate(number)
        if number + 1 == step:
            act()

    made.iteration = iteration  # type: ignore[method-assign]


def stop_after(step: int, made: Trainer) -> None:
    after(step, made, lambda: signal.raise_signal(signal.SIGTERM))


def quiet(_: str) -> None:
    """Where the lines of a run go."""


def assert_same_end(one: Path, other: Path, step: int) -> None:
    first, second = checkpoint.load(one), checkpoint.load(other)
    assert first.step == second.step == step
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.dtype == second.tensors[name].dtype
        assert torch.equal(tensor, second.tensors[name]), name
    assert metrics(one) == metrics(other)
