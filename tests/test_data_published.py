"""Every data set by name, from files in the format it is published in, to batches and to training its preset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import Command
from image_files import (
    chairs,
    idx_files,
    photograph,
    write_celeba,
    write_dsprites,
    write_folder,
    write_renders,
    write_svhn,
    write_tar,
)

from fastinfogan import train
from fastinfogan.config import PRESETS, DatasetName
from fastinfogan.data import DATASETS, BatchPlan, Encoded, mnist, open_batches, open_split
from fastinfogan.metrics import evaluation

N = 8


def make_svhn(root: Path) -> None:
    write_svhn(root, N)
    write_svhn(root, N, "test")


def make_faces(root: Path) -> None:
    write_folder(root / "faces", {f"{i}.png": photograph(i, 100, 100, kind="PNG") for i in range(N)})


PUBLISHED: dict[str, Callable[[Path], object]] = {
    "mnist": lambda root: write_folder(root / "mnist", idx_files(N)),
    "fashion-mnist": lambda root: write_folder(root / "fashion-mnist", idx_files(N)),
    "svhn": make_svhn,
    "celeba": lambda root: write_celeba(root, N, zipped=True),
    "faces": make_faces,
    "chairs": lambda root: write_tar(root / "chairs" / "rendered_chairs.tar", chairs(2)),
    "dsprites": lambda root: write_dsprites(root, N),
    "folder": lambda root: write_folder(root, {f"{i}.jpg": photograph(i, 50, 40) for i in range(N)}),
}
RENDERED: dict[str, Callable[[Path], object]] = {
    "faces": lambda root: write_renders(root / "faces", N),
    "chairs": lambda root: write_renders(root / "chairs", N, 64),
}
SOURCES = [*PUBLISHED.items(), *((f"{name} rendered", make) for name, make in RENDERED.items())]


@pytest.fixture
def no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny MNIST pass for the published one."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in idx_files(N).items()}
    monkeypatch.setattr(mnist, "MD5", sums)


def test_every_name_is_a_data_set_here_and_on_the_command_line() -> None:
    assert list(PUBLISHED) == list(DATASETS) == list(get_args(DatasetName))


@pytest.mark.parametrize(("name", "make"), SOURCES, ids=[name for name, _ in SOURCES])
def test_files_as_published_become_the_batches_of_the_preset(
    tmp_path: Path, no_sums: None, name: str, make: Callable[[Path], object]
) -> None:
    make(tmp_path)
    config = PRESETS[name.split()[0]]
    tables = config.network_tables
    opened = open_split(config.dataset, tmp_path, "train", tables.image, gray=config.gray, tables=config.tables)
    if isinstance(opened, Encoded):
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    low, high = tables.image_range
    plan = BatchPlan(4, 1, low, high, flip=False, device=torch.device("cpu"))
    batches = open_batches(opened, plan, image=tables.image, placement="resident", progress=False)
    epoch = torch.cat([batches.at(step) for step in range(2)])
    assert len(opened) == N and epoch.shape == (N, *tables.image) and epoch.isfinite().all()
    assert low <= epoch.min() < low + 0.4 * (high - low) and high - 0.4 * (high - low) < epoch.max() <= high
    assert len({images.numpy().tobytes() for images in epoch}) > 1
    if opened.factors is not None:
        assert len(opened.factors) == N
    batches.close()


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_the_middle_of_a_published_chair_fills_the_grey_image(tmp_path: Path, placement: str) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    PUBLISHED["chairs"](tmp_path)
    opened = open_split("chairs", tmp_path, "train", (1, 64, 64), gray=True)
    plan = BatchPlan(8, 1, 0.0, 255.0, flip=False, device=torch.device("cpu"))
    images = open_batches(opened, plan, image=(1, 64, 64), placement=placement, progress=False).at(0)  # type: ignore[arg-type]
    assert (images[:, 0, 0] == 255).all()  # white around it
    box = images[:, 0] < 250  # the block at 200..400 x 150..450 of 600, after 100 are cut off on every side
    rows, columns = box.any(2).sum(1), box.any(1).sum(1)
    assert ((rows - 48).abs() <= 2).all() and ((columns - 32).abs() <= 2).all()


def assert_trains(command: Command, preset: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations of the preset's own networks on ``folder``/data; all that a finished run leaves is there."""
    monkeypatch.setattr(evaluation, "INFORMATION_SAMPLES", 100)
    run = folder / "run"
    flags = ["--iterations", "2", "--batch", "4", "--log-every", "1", "--device", "cpu", "--run-dir", run]
    ended = command(train, "--preset", preset, "--data", folder / "data", *flags)
    assert ended.code == 0, ended.err
    assert (run / "evaluation.json").is_file() and (run / "figures" / "samples-final.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_on_files_as_published(
    tmp_path: Path, no_sums: None, preset: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    PUBLISHED[PRESETS[preset].dataset](tmp_path / "data")
    assert_trains(command, preset, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name].dataset in RENDERED])
def test_faces_and_chairs_train_on_what_their_renderer_leaves(
    tmp_path: Path, preset: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    RENDERED[PRESETS[preset].dataset](tmp_path / "data")
    assert_trains(command, preset, tmp_path, monkeypatch)
