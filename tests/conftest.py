"""Shared by the tests of commands, trainer and checkpoints: a tiny labelled set, tiny networks, a command runner."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from image_files import idx_files, photograph, write_folder

from fastinfogan import networks, train
from fastinfogan.commands import run_command
from fastinfogan.config import TrainConfig
from fastinfogan.data import BatchPlan, Decoded, ResidentBatches
from fastinfogan.metrics import evaluation
from fastinfogan.networks import Tables, conv, fc, up
from fastinfogan.precision import Precision
from fastinfogan.run_directory import RunDirectory
from fastinfogan.trainer import Trainer

IMAGES = 40  # in either split of the tiny set

GREY = Tables(
    image=(1, 28, 28),
    trunk=[conv(8), conv(8, norm=True), fc(16, norm=True)],
    recognition=[fc(8, norm=True)],
    generator=[fc(16, norm=True), fc(8, norm=True, grid=7), up(8, norm=True), up(1, act="sigmoid")],
)
COLOUR = Tables(
    image=(3, 32, 32),
    trunk=[conv(8), conv(8, norm=True)],
    recognition=[fc(8, norm=True)],
    generator=[fc(16, norm=True, grid=8), up(8, norm=True), up(3, act="tanh")],
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def _run(module: ModuleType, *arguments: object) -> int:
    """``python -m MODULE ARGUMENTS`` in this process; returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        try:
            run_command(module.main)
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


@contextlib.contextmanager
def _shrunk() -> Iterator[None]:
    """Tiny tables, on one thread: on so little work, on a busy machine, two mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as cleanup, pytest.MonkeyPatch.context() as patch:
        cleanup.callback(torch.set_num_threads, threads)
        patch.setitem(networks.TABLES, "mnist", GREY)
        patch.setitem(networks.TABLES, "svhn", COLOUR)
        patch.setitem(networks.TABLES, "celeba", COLOUR)
        patch.setattr(evaluation, "INFORMATION_SAMPLES", 1000)
        yield


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """Bitwise claims hold for one number of threads; the machine is shared."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def seeded() -> None:
    """PyTorch's own generator at its start."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_networks() -> Iterator[None]:
    """Tables of 8 channels in place of the paper's, for as long as the test runs."""
    with _shrunk():
        yield


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a Fashion-MNIST of 40 random images in either split."""
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "fashion-mnist", idx_files(IMAGES))
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 photographs."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return write_folder(tmp_path_factory.mktemp("photos"), {f"{i:02d}.jpg": photograph(i, 48, 40) for i in range(24)})


@pytest.fixture
def tiny_config(data_root: Path) -> Callable[..., TrainConfig]:
    """``tiny_config(**changes)``: eleven iterations of eight images; nothing drawn, nothing saved before the end."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "dataset": "fashion-mnist", "data": data_root, "noise": 6, "codes": ("cat:10", "uniform:2"), "batch": 8,
            "iterations": 11, "log_every": 4, "figure_every": 1000, "save_every": 1000, "seed": 3, "device": "cpu",
        }  # fmt: skip
        return TrainConfig(**values | changes)

    return make


@pytest.fixture
def tiny_flags(data_root: Path) -> list[str]:
    """The flags of a training command that is done within a second."""
    flags = f"--dataset fashion-mnist --data {data_root} --noise 6 --batch 8 --iterations 6 --log-every 2 --device cpu"
    return flags.split()


@pytest.fixture
def make_trainer(tiny_networks: None) -> Callable[..., Trainer]:
    """``make_trainer(config, folder, precision=float32)``: a trainer on 40 random images that goes on where it can."""

    def make(config: TrainConfig, folder: Path, dtype: torch.dtype = torch.float32, **others: Any) -> Trainer:
        pixels = torch.randint(0, 256, (IMAGES, 28, 28, 1), generator=torch.Generator().manual_seed(0)).byte()
        plan = BatchPlan(config.batch, config.seed, 0.0, 1.0, flip=True, device=torch.device("cpu"))
        batches = others.get("batches") or ResidentBatches(Decoded("made", pixels), plan)
        run = RunDirectory(folder, config, others.get("step", 0))
        run.begin()
        return Trainer(config, batches, run, Precision(torch.device("cpu"), dtype, "the test asks for it"))

    return make


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``command(module, *arguments)``: run a command in this process and catch what it prints."""

    def run(module: ModuleType, *arguments: object) -> Outcome:
        capsys.readouterr()
        code = _run(module, *arguments)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> tuple[Path, Outcome]:
    """A finished run on the tiny set, not to be changed, and how its command ended. Needs ``tiny_networks`` to load."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = f"--dataset fashion-mnist --data {data_root} --noise 6 --batch 8 --iterations 6 --log-every 2 --seed 5"
    flags += f" --device cpu --save-every 2 --figure-every 4 --run-dir {folder}"
    out, err = io.StringIO(), io.StringIO()
    with _shrunk(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _run(train, *flags.split())
    return folder, Outcome(code, out.getvalue(), err.getvalue())
