"""What each of two processes does for test_distributed.py: ``python distributed_worker.py FOLDER``.

All in one process group, as starting Python and torch twice is what takes the time. The last thing is that process 1
is gone.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastinfogan import checkpoint, heads, matrices, networks, rivals
from fastinfogan import trainer as trainer_module
from fastinfogan.config import TrainConfig
from fastinfogan.data import BatchPlan, Decoded, ResidentBatches
from fastinfogan.distributed import ALONE, LostProcess, Ranks, SynchronisedNorm, joined, synchronise_norms
from fastinfogan.precision import Precision
from fastinfogan.run_directory import RunDirectory
from fastinfogan.run_metrics import Metrics
from fastinfogan.trainer import Trainer

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    dataset="fashion-mnist", noise=6, batch=8, iterations=6, log_every=2, figure_every=100, save_every=100, seed=3,
    device="cpu",
)  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "trunk gets MI": {},
    "Q learns with G": {"trunk_mi": False, "codes": ("cat:3", "gaussian:1", "cat:4"), "noise_prior": "normal"},
    "invariance": {"invariance": 2.0},
    # Not 1 or 2 of them: there the bias of G's last layer nearly cancels, and a nudge of 1e-7 moves it by 0.1 %.
    # The answers of heads that have learnt next to nothing hardly depend on the image, so that all pairs of values are
    # as alike to second order: on most seeds rounding decides which of them a variant merges, on this one it does not.
    "rivals": {"invariance": 2.0, "rivals": 3, "seed": 2},
    "spectral norm": {"spectral_norm": True},
    "learnt prior": {"learn_prior": True, "invariance": 0.5, "codes": ("cat:3", "uniform:1", "cat:4")},
}


def comparable(patch: pytest.MonkeyPatch) -> None:
    """SiLU in place of every ReLU, in networks that compute by any engine; of heads the best is chosen in any case.

    A unit at 0 but for rounding is on in one run and off in another: with ReLUs, one process whose first weights are
    nudged by 1e-7 ends up to 76 % of a tensor's size elsewhere, depending on the processor; without, 0.03 %.
    """
    plain = networks.activate

    def activate(x: torch.Tensor, act: networks.Activation) -> torch.Tensor:
        return F.silu(x) if act in ("relu", "lrelu") else plain(x, act)

    for module in (networks, matrices, heads):
        patch.setattr(module, "activate", activate)
    for module in (matrices, heads):
        patch.setattr(module, "SLOPES", {})
    patch.setattr(rivals, "CLEARLY", math.inf)


def trainer(config: TrainConfig, folder: Path, ranks: Ranks = ALONE, step: int = 0) -> Trainer:
    """A trainer on 40 random images; Adam with a large eps, or it turns rounding noise in a gradient into a step."""
    pixels = torch.randint(0, 256, (40, 28, 28, 1), generator=torch.Generator().manual_seed(0)).byte()
    plan = BatchPlan(ranks.share(config.batch), config.seed, 0.0, 1.0, True, CPU, rank=ranks.rank, world=ranks.world)
    run = RunDirectory(folder, config, step, writes=ranks.first)
    run.begin()
    made = Trainer(
        config, ResidentBatches(Decoded("made", pixels), plan), run, Precision(CPU, torch.float32, ""), ranks
    )
    for phase in (made.discriminator_phase, made.generator_phase):
        phase.optimiser.param_groups[0]["eps"] = 1e-2
    return made


def curve(made: Trainer) -> dict[str, Any]:
    """Latents and images of each step, all readings, and what the weights have become."""
    found: dict[str, Any] = {"latents": [], "images": [], "readings": []}
    for step in range(CONFIG.iterations):
        found["latents"].append(made.draw(step).z)
        found["images"].append(made.batches.at(step))
        made.iteration(step)
        found["readings"].append(list(made.metrics.read().values()))
    found["state"] = {name: tensor.clone() for name, tensor in made.state().items() if "metrics" not in name}
    return found


def norm_case(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs far from 0, as a sum of squares would lose them, and gradients."""
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, generator=generator) * torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2)) + 300
    dy = torch.randn(shape, generator=generator)
    if len(shape) == 4:
        x, dy = (one.contiguous(memory_format=torch.channels_last) for one in (x, dy))
    return x, dy


NORM_SHAPES = ((12, 5), (12, 5, 3, 2))


def run_norm(norm: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics of two forward passes, the second without a gradient of the weights."""
    norm.weight.data.copy_(torch.linspace(0.5, 2, len(norm.weight)))  # type: ignore[union-attr, operator, arg-type]
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    norm(x * 2)
    return found | {name: buffer.clone() for name, buffer in norm.named_buffers()}  # type: ignore[return-value]


def synchronised_norms(ranks: Ranks) -> list[dict[str, torch.Tensor]]:
    found = []
    for shape in NORM_SHAPES:
        x, dy = (one.chunk(ranks.world)[ranks.rank] for one in norm_case(shape))
        module = nn.Sequential(nn.BatchNorm1d(shape[1]) if len(shape) == 2 else nn.BatchNorm2d(shape[1]))
        synchronise_norms(module)
        assert isinstance(module[0], SynchronisedNorm)
        found.append(run_norm(module[0], x, dy))
    return found


def averages(ranks: Ranks) -> list[torch.Tensor]:
    """One bucket of tensors of several types and layouts."""
    image = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) * (ranks.rank + 1)
    tensors = [
        image,
        torch.tensor([1.0, 5.0], dtype=torch.bfloat16) * (2 * ranks.rank),
        torch.tensor(float(ranks.rank)),
    ]
    ranks.average_together(tensors)
    return tensors


def interrupted(folder: Path, ranks: Ranks) -> tuple[int, int | None, torch.Tensor]:
    """Process 1 alone gets a signal, in its third iteration; what that adds to this process's sums of statistics."""
    made = trainer(CONFIG, folder / "interrupted", ranks)
    iterate, seen = made.iteration, torch.empty(0)

    def iteration(step: int) -> None:
        nonlocal seen
        iterate(step)
        if step == 2:
            seen = made.metrics.sums.clone()
            if ranks.rank == 1:
                signal.raise_signal(signal.SIGTERM)

    made.iteration = iteration  # type: ignore[method-assign]
    stopped = made.train(lambda _: None)
    return stopped.step, None if stopped.signal is None else int(stopped.signal), seen


def not_finite(ranks: Ranks) -> tuple[str, int] | None:
    """What both are told where process 0 had it at step 7 and process 1 at step 5."""
    metrics = Metrics(["a", "b"], CPU, ranks)
    metrics.add([6, 4][ranks.rank], torch.tensor([1.0, math.nan]))
    return metrics.first_not_finite()


def resumed(folder: Path, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The interrupted run goes on to its end."""
    made = trainer(CONFIG, folder / "interrupted", ranks, step=3)
    with ranks.in_turn():  # it is the first that saves
        made.restore(checkpoint.load(folder / "interrupted"))
    made.train(lambda _: None)
    return made.state()


def lost(folder: Path, ranks: Ranks) -> str:
    """Process 1 is gone in the fifth iteration of a run that saves after the fourth."""
    made = trainer(replace(CONFIG, save_every=4), folder / "lost", ranks)
    iterate = made.generator_phase.update

    def update(*arguments: Any) -> torch.Tensor:
        if made.step == 4 and ranks.rank == 1:
            os._exit(9)
        return iterate(*arguments)

    made.generator_phase.update = update  # type: ignore[method-assign]
    try:
        made.train(lambda _: None)
    except LostProcess as error:
        return str(error)
    return "it was not noticed"


def gloo_threads() -> int:
    """How many threads of this process carry out gloo's collectives."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


def main(folder: Path) -> None:
    """Do all of it and leave ``RANK.pt`` in ``folder``."""
    torch.set_num_threads(1)
    from conftest import GREY

    networks.TABLES["mnist"] = GREY
    comparable(patch := pytest.MonkeyPatch())
    with joined("cpu") as (ranks, device):
        assert device == CPU
        if not ranks.first:  # as on another kind of processor, only more so
            patch.setattr(trainer_module, "build", lambda *tables, seed: networks.build(*tables, seed=seed + 77))
        found: dict[str, Any] = {"norms": synchronised_norms(ranks), "averages": averages(ranks)}
        found["agreed"] = [ranks.any(False), ranks.any(ranks.rank == 1), ranks.from_first(f"from {ranks.rank}")]
        with ranks.in_turn():
            marks = folder / "marks"
            marks.write_text((marks.read_text() if marks.exists() else "") + str(ranks.rank))
        for name, changes in OBJECTIVES.items():
            found[name] = curve(trainer(replace(CONFIG, **changes), folder / name.replace(" ", "-"), ranks))
        found["interrupted"] = interrupted(folder, ranks)
        found["not finite"] = not_finite(ranks)
        found["resumed"] = resumed(folder, ranks)
        found["unbroken"] = (whole := trainer(CONFIG, folder / "unbroken", ranks)) and whole.train(lambda _: None).step
        found["unbroken state"] = whole.state()
        torch.save(found, folder / f"{ranks.rank}.pt")
        found["lost"] = lost(folder, ranks)
        threads = [gloo_threads()]
    found["threads of the group, and left of it"] = [*threads, gloo_threads()]
    torch.save(found, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
