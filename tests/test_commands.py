"""Train, evaluate and generate do from end to end what their help says, on a tiny labelled set."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import Command, Outcome
from image_files import write_svhn
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fastinfogan
from fastinfogan import checkpoint, evaluate, figures, generate, train
from fastinfogan.config import TrainConfig, read_config
from fastinfogan.data import BatchPlan
from fastinfogan.errors import UserError
from fastinfogan.metrics.clustering import UNMATCHED
from fastinfogan.ops import selfcheck
from fastinfogan.run_directory import RunDirectory, new_folder
from fastinfogan.trainer import Trainer

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture
def copied(tmp_path: Path, finished: tuple[Path, Outcome]) -> Path:
    """A copy of the finished run of six iterations."""
    return Path(shutil.copytree(finished[0], tmp_path / "copied"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_run_writes_all_that_it_promises(finished: tuple[Path, Outcome]) -> None:
    folder, ended = finished
    assert ended.code == 0 and ended.err == ""
    assert read_config(folder).run_dir == folder and read_config(folder).seed == 5
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for name in ("loss/d_real", "loss/d_fake", "loss/g_fake", "loss/c1", "mi/c1", "mi/c2", "mi/c3", "mi/total"):
        assert all(math.isfinite(line[name]) for line in lines)
    assert all(line["mi/c1"] <= math.log(10) and line["mi/c2"] <= math.log(2) for line in lines)
    assert all(line["images_per_second"] > 0 for line in lines)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "step-00000004.safetensors", "step-00000006.safetensors",
    ]  # fmt: skip


def test_the_ops_are_checked_on_the_device_before_anything_is_written(
    tmp_path: Path, tiny_flags: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trust(device: torch.device) -> None:
        raise UserError(f"asked about {device.type}")

    monkeypatch.setattr(selfcheck, "trust", trust)
    ended = command(train, *tiny_flags, "--run-dir", tmp_path / "run")
    assert ended.code == 2 and "asked about cpu" in ended.err and not (tmp_path / "run").exists()


def test_tensorboard_shows_what_metrics_jsonl_holds(finished: tuple[Path, Outcome]) -> None:
    folder, _ = finished
    (events,) = folder.glob("events.*")
    shown = EventAccumulator(str(events)).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(shown.Tags()["scalars"]) == set(lines[0]) - {"step"}
    for name in ("mi/c1", "loss/d"):
        assert [event.step for event in shown.Scalars(name)] == [2, 4, 6]
        assert [event.value for event in shown.Scalars(name)] == pytest.approx([line[name] for line in lines])


def test_figures_of_a_run_open_and_have_a_column_per_value(finished: tuple[Path, Outcome]) -> None:
    folder, _ = finished
    names = ["samples", "traversal-c1", "traversal-c2", "traversal-c3"]
    expected = {f"{name}-{label}.png" for name in names for label in ("00000004", "final")} | {"curves.png"}
    assert {path.name for path in (folder / "figures").iterdir()} == expected
    assert pixels(folder / "figures" / "samples-final.png").shape == (560, 560, 3)
    for name in names[1:]:
        height, width, _ = pixels(folder / "figures" / f"{name}-final.png").shape
        assert height == 578 and 560 < width < 620
    assert pixels(folder / "figures" / "curves.png").shape[2] == 3


def test_a_run_prints_what_it_does_and_what_came_of_it(finished: tuple[Path, Outcome]) -> None:
    folder, ended = finished
    said = ended.out.splitlines()
    assert said[0].startswith("training on the CPU (") and said[0].endswith("in float32: --amp was not given")
    assert said[1] == f"40 images of fashion-mnist; writing to {folder}"
    assert re.match(r" +2/6  D \d\.\d{3}  G \d\.\d{3}  MI c1 -?\d\.\d\d/2\.30  c2 -?\d\.\d\d/0\.69 ", said[2])
    assert "mutual information bound, nats (share of H(c)):" in ended.out
    assert re.search(r"c1 +error [ \d]\d\.\d\d%   NMI \d\.\d{3}   ARI -?\d\.\d{3}", ended.out)
    assert said[-1].endswith(f"look at {folder}/figures/*-final.png")


def test_evaluation_json_holds_what_the_table_shows_and_more(finished: tuple[Path, Outcome]) -> None:
    folder, ended = finished
    judged = json.loads((folder / "evaluation.json").read_text())
    assert judged["step"] == 6 and set(judged["information"]) == {"c1", "c2", "c3", "total"}
    assert judged["entropies"] == pytest.approx({"c1": math.log(10), "c2": math.log(2), "c3": math.log(2)})
    (found,) = judged["clusterings"].values()
    named = [label for label in found["matching"] if label != UNMATCHED]  # so early, some values have no image
    assert len(found["matching"]) == 10 and named and len(set(named)) == len(named) and set(named) <= set(range(10))
    confusion = np.array(found["confusion"])
    assert confusion.shape == (10, 10) and confusion.sum() == 40
    right = sum(confusion[label, value] for value, label in enumerate(found["matching"]) if label != UNMATCHED)
    assert found["error"] == pytest.approx(1 - right / 40)
    assert f"error {found['error']:6.2%}" in ended.out
    assert "\n".join(judged["table"]) in ended.out and "test labels chose nothing" in "".join(judged["table"])


def test_evaluate_repeats_the_evaluation_of_the_run(copied: Path, command: Command) -> None:
    first = json.loads((copied / "evaluation.json").read_text())
    (copied / "evaluation.json").unlink()
    ended = command(evaluate, copied, "--device", "cpu")  # as it was trained
    assert ended.code == 0 and f"written to {copied}/evaluation.json" in ended.out
    again = json.loads((copied / "evaluation.json").read_text())
    # up to rounding: training holds the weights in another memory layout
    assert again["step"] == 6 and again["information"] == pytest.approx(first["information"], abs=1e-3)
    assert again["clusterings"]["c1"]["error"] == pytest.approx(first["clusterings"]["c1"]["error"], abs=0.051)
    assert "argmax Q(c|x) on the real images of the test split" in ended.out


def test_evaluate_judges_the_checkpoint_it_is_given(copied: Path, command: Command, data_root: Path) -> None:
    earlier = copied / "checkpoints" / "step-00000004.safetensors"
    ended = command(evaluate, earlier, "--data", data_root, "--device", "cpu")
    assert ended.code == 0 and "after 4 iterations" in ended.out
    assert json.loads((copied / "evaluation.json").read_text())["step"] == 4


@pytest.mark.parametrize(
    ("flags", "names", "shape"),
    [
        (["--out", "OUT/s.png"], ["s.png"], (560, 560)),
        (["--count", "25", "--out", "OUT/new/s.png"], ["new/s.png"], (168, 560)),
        (["--count", "7", "--out", "OUT/s.jpg"], ["s.jpg"], (56, 560)),
        (["--what", "interpolation", "--count", "30", "--out", "OUT/i.png"], ["i.png"], (168, 560)),
        (["--what", "traversals", "--out", "OUT"], [f"traversal-c{i}.png" for i in (1, 2, 3)], (578, None)),
    ],
)
def test_generate_draws_pictures_of_the_size_asked_for(
    tmp_path: Path,
    finished: tuple[Path, Outcome],
    command: Command,
    flags: list[str],
    names: list[str],
    shape: tuple[int, int | None],
) -> None:
    ended = command(generate, finished[0], *(flag.replace("OUT", str(tmp_path)) for flag in flags))
    assert ended.code == 0 and ended.out.splitlines() == [str(tmp_path / name) for name in names]
    for name in names:
        height, width, _ = pixels(tmp_path / name).shape
        assert height == shape[0] and shape[1] in (None, width)


@pytest.mark.parametrize("module", [evaluate, generate])
def test_kernels_that_are_not_to_be_trusted_judge_and_draw_nothing(
    module: ModuleType, copied: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubt(_: torch.device) -> None:
        raise UserError("the kernels are wrong here")

    monkeypatch.setattr(module.selfcheck, "trust", doubt)
    ended = command(module, copied, "--device", "cpu")
    assert ended.code == 2 and "the kernels are wrong here" in ended.err


def test_generate_writes_into_the_runs_figures_by_default(copied: Path, command: Command) -> None:
    for what, names in {"samples": ["samples.png"], "traversals": [f"traversal-c{i}.png" for i in (1, 2, 3)]}.items():
        ended = command(generate, copied, "--what", what)
        assert ended.out.splitlines() == [str(copied / "figures" / name) for name in names]
        assert all((copied / "figures" / name).is_file() for name in names)


def test_generate_is_a_function_of_its_seed(
    tmp_path: Path, finished: tuple[Path, Outcome], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[torch.Tensor] = []
    real = figures.generate
    monkeypatch.setattr(figures, "generate", lambda g, z: (fed.append(z), real(g, z))[1])
    for name, seed in {"one": 1, "same": 1, "other": 2}.items():
        flags = ["--seed", seed, "--device", "cpu", "--out", tmp_path / f"{name}.png"]
        assert command(generate, finished[0], *flags).code == 0
    assert torch.equal(fed[0], fed[1]) and not torch.equal(fed[0], fed[2])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()


@pytest.mark.parametrize("count", [20, 11])
def test_an_interpolation_runs_between_two_samples_of_the_seed(
    count: int, finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, spec, network, _ = checkpoint.load_networks(finished[0], torch.device("cpu"))
    fed: list[torch.Tensor] = []
    monkeypatch.setattr(figures, "generate", lambda g, z: (fed.append(z), g(z).detach())[1])
    command = generate.Generate(run=finished[0], count=count, what="interpolation", seed=7, set=("c1=3",))
    generate.draw(command, network, spec, saved.config.network_tables.image_range)
    ends = generate.fix_codes(spec, figures.latents(network, spec, 4, 7), {0: 3.0})
    rows = fed[0].view(2, figures.COLUMNS, spec.dim)
    assert torch.equal(rows[:, 0], ends[:2]) and torch.equal(rows[:, -1], ends[2:])


def test_pictures_are_drawn_in_the_range_of_the_networks_with_the_seed_that_is_given(
    tmp_path: Path,
    tiny_config: Callable[..., TrainConfig],
    make_trainer: Callable[..., Trainer],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[object, ...]] = []
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr(figures, "traversal_figure", lambda g, spec, *given: (seen.append(given), blank)[1])
    monkeypatch.setattr(figures, "grid", lambda images, *given: (seen.append(given), blank)[1])
    make_trainer(tiny_config(tables="celeba", codes=("cat:3", "uniform:1")), tmp_path).save()
    for what in ("traversals", "samples"):
        assert command(generate, tmp_path, "--what", what, "--seed", "7", "--device", "cpu").code == 0
    assert seen == [(0, (-1.0, 1.0), 7), (1, (-1.0, 1.0), 7), (figures.COLUMNS, (-1.0, 1.0))]


def test_generate_holds_the_codes_that_are_set(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    saved, spec, network, _ = checkpoint.load_networks(finished[0], torch.device("cpu"))
    fed: list[torch.Tensor] = []
    monkeypatch.setattr(figures, "generate", lambda g, z: (fed.append(z), g(z).detach())[1])
    image_range = saved.config.network_tables.image_range
    for settings in ((), ("c1=3", "c2=-1.5")):
        command = generate.Generate(run=finished[0], count=20, set=settings)
        assert list(generate.draw(command, network, spec, image_range)) == ["samples"]
    free, held = fed
    assert free.shape == held.shape == (20, spec.dim)
    assert (held[:, spec.one_hot_columns(0)].argmax(1) == 3).all() and (held[:, -2] == -1.5).all()
    assert torch.equal(held[:, : spec.noise], free[:, : spec.noise]) and torch.equal(held[:, -1], free[:, -1])


def test_resume_goes_on_in_the_same_folder_with_the_same_configuration(copied: Path, command: Command) -> None:
    ended = command(train, "--resume", copied, "--iterations", "8")
    assert ended.code == 0
    assert f"resuming at step 6 from {copied}/checkpoints/step-00000006.safetensors" in ended.out
    lines = [json.loads(line)["step"] for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 6, 8] and json.loads((copied / "evaluation.json").read_text())["step"] == 8
    assert (
        replace(read_config(copied), iterations=6)
        == checkpoint.load(copied / "checkpoints" / "step-00000006.safetensors").config
    )


def test_resume_from_an_earlier_checkpoint_leaves_what_came_after_it(copied: Path, command: Command) -> None:
    ended = command(train, "--resume", copied / "checkpoints" / "step-00000004.safetensors", "--lr-g", "1e-5",
                    "--iterations", "5")  # fmt: skip
    assert ended.code == 0 and "resuming at step 4" in ended.out
    lines = [json.loads(line)["step"] for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 5]
    newest = checkpoint.load(copied)
    assert newest.step == 5 and newest.config.lr_g == 1e-5
    assert not (copied / "checkpoints" / "step-00000006.safetensors").exists()


def test_a_run_without_codes_or_without_categories_trains(
    tmp_path: Path, tiny_flags: list[str], command: Command
) -> None:
    codes = ["--codes", "gaussian:1", "--noise-prior", "normal", "--run-dir", tmp_path / "run"]
    ended = command(train, *tiny_flags, *codes)
    assert ended.code == 2 and "add --invariance 0 --rivals 0 --q-share 1" in ended.err  # the quick start has them
    ended = command(train, *tiny_flags, *codes, "--invariance", 0, "--rivals", 0, "--q-share", 1)
    assert ended.code == 0 and "MI c1 " in ended.out and "argmax" not in ended.out
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["clusterings"] == {}


@pytest.mark.parametrize(
    "flags",
    [
        ["--saturating"],
        ["--fixed-std"],
        ["--no-trunk-mi", "--invariance", "0", "--q-share", "1", "--rivals", "0"],
        ["--no-trunk-mi", "--no-generator-mi", "--invariance", "0", "--q-share", "1", "--rivals", "0"],
    ],
)
def test_every_switch_of_the_objective_trains_from_the_command_line(
    tmp_path: Path, tiny_flags: list[str], command: Command, flags: list[str]
) -> None:
    ended = command(train, *tiny_flags, "--iterations", "2", *flags, "--run-dir", tmp_path / "run")
    assert ended.code == 0 and checkpoint.load(tmp_path / "run").step == 2


def test_amp_says_what_it_chose(tmp_path: Path, tiny_flags: list[str], command: Command) -> None:
    ended = command(train, *tiny_flags, "--amp", "--iterations", "2", "--run-dir", tmp_path / "run")
    assert ended.code == 0
    chosen = re.match(r"training on .* in (\w+): (this .*)", ended.out)
    assert chosen is not None
    has = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert chosen[1] == ("bfloat16" if has else "float32")


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (train, ["--iterations", "(default: 1000)", "--lr-d", "Presets: mnist, ", "--resume", "--seed", "64-bit"]),
        (evaluate, ["PATH", "folder", "--data", "--device", "(default: auto)", "nats"]),
        (generate, ["--what {samples,traversals,interpolation}", "(default: samples)", "--count INT", "--set", "c1=3"]),
    ],
)
def test_help_lists_the_flags_with_their_defaults(command: Command, module: ModuleType, told: list[str]) -> None:
    ended = command(module, "--help")
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.out).split())
    assert ended.code == 0 and all(part in shown for part in told), shown


@pytest.mark.parametrize("module", [train, evaluate, generate])
def test_version_is_printed_whatever_else_is_asked(command: Command, module: ModuleType) -> None:
    for flags in (["--version"], ["--nonsense", "--version"]):
        ended = command(module, *flags)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == f"fastinfogan {fastinfogan.__version__}, torch {torch.__version__}\n"


def test_a_choice_that_does_not_exist_is_answered_with_those_that_do(
    command: Command, finished: tuple[Path, Outcome]
) -> None:
    ended = command(generate, finished[0], "--what", "sample")
    assert ended.code == 2 and "traversals" in ended.err and "Traceback" not in ended.err
    ended = command(train, "--tables", "mnst")
    assert ended.code == 2 and "mnist" in ended.err and "chairs" in ended.err


def test_a_real_process_prints_its_version_and_an_error_as_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "fastinfogan.train"]
    both = [
        subprocess.Popen([*run, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                         env=environment)
        for flags in (["--version"], ["--preset", "mnst"])
    ]  # fmt: skip
    (version, quiet), (_, told) = (process.communicate(timeout=120) for process in both)
    assert [process.returncode for process in both] == [0, 2]
    assert version.startswith("fastinfogan ") and quiet == ""
    assert told.startswith("error: unknown data set or preset 'mnst'") and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    run = [sys.executable, "-m", "fastinfogan.data", "--help"]
    finished = subprocess.run(run, stdout=write, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1], check=False)
    os.close(write)
    assert (finished.returncode, finished.stderr) == (141, b"")


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Callable[..., TrainConfig]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {new_folder(tiny_config()) for _ in range(3)}
    assert len(names) == 3 and all(name.parent == Path("runs") and name.is_dir() for name in names)
    assert all(name.name.startswith("fashion-mnist-20") for name in names)


def test_a_run_folder_reopened_at_a_step_forgets_what_came_after(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    first = RunDirectory(tmp_path, tiny_config(), 0)
    first.begin()
    for step in (2, 4, 6):
        first.log(step, {"loss": step / 2})
    first.close()
    with first.metrics.open("a") as file:
        file.write('{"step": 8, "lo')
    second = RunDirectory(tmp_path, tiny_config(), 4)
    second.begin()
    second.log(6, {"loss": 9.0})
    second.close()
    lines = [json.loads(line) for line in second.metrics.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 6, "loss": 9.0}]


def test_batches_are_those_that_the_configuration_asks_for(
    tmp_path: Path, tiny_networks: None, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        write_svhn(tmp_path, 12, split)
    plans: list[BatchPlan] = []
    monkeypatch.setattr(train.data, "BatchPlan", lambda *a, **k: plans.append(BatchPlan(*a, **k)) or plans[-1])
    flags = f"--dataset svhn --data {tmp_path} --batch 4 --iterations 1 --seed 7 --flip --device cpu"
    ended = command(train, *flags.split(), "--run-dir", tmp_path / "run")
    assert ended.code == 0, ended.err
    (plan,) = plans
    assert (plan.batch, plan.seed, plan.low, plan.high, plan.flip) == (4, 7, -1.0, 1.0, True)
