"""Bad input ends a command with status 2 and one sentence that holds the value and the remedy, before work starts."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Command, Outcome

from fastinfogan import checkpoint, evaluate, generate, train
from fastinfogan.config import TrainConfig, read_config, to_json
from fastinfogan.data import mnist
from fastinfogan.errors import UserError
from fastinfogan.ops import sample_latents
from fastinfogan.trainer import Trainer

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without --run-dir go below the test's folder."""
    monkeypatch.chdir(tmp_path)


def assert_told(ended: Outcome, *parts: str) -> None:
    """One sentence, one line, no traceback, and each of ``parts`` in it."""
    assert ended.code == 2, ended
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.err.endswith(line + "\n") and "Traceback" not in ended.err
    assert all(part in line for part in parts), line


FLAGS = [
    (["--dataset", "mnst"], "'mnst'", "did you mean mnist"),
    (["--preset", "celebb"], "'celebb'", "did you mean celeba"),
    (["--preset", "cifar"], "'cifar'", "choose one of mnist, "),
    (["--codes", "cat:1"], "at least 2 values, got 1", "write cat:2 or more"),
    (["--codes", "cat:0", "uniform:1"], "at least 2 values, got 0", "write cat:2"),
    (["--codes", "uniform:0"], "uniform:0", "write uniform:1 or more"),
    (["--codes", "cat:ten"], "'cat:ten'", "write cat:K, uniform:N or gaussian:N"),
    (["--codes", "categorical:10"], "'categorical:10'", "for example cat:10"),
    (["--codes", "cat:-3"], "'cat:-3'", "write cat:K"),
    (["--noise", "-1"], "got -1", "0 to 65,536"),
    (["--categorical-weight", "-0.5"], "--categorical-weight", "0 or more, got -0.5"),
    (["--continuous-weight", "-1"], "--continuous-weight", "0 or more, got -1.0"),
    (["--invariance", "-1"], "--invariance", "0 or more, got -1"),
    (["--invariance", "1", "--no-trunk-mi"], "--invariance 1.0", "add --trunk-mi, or give --invariance 0"),
    (["--continuous-weight", "nan"], "--continuous-weight", "got nan"),
    (["--lr-d", "0"], "--lr-d", "above 0, got 0"),
    (["--lr-g", "-1e-3"], "--lr-g", "above 0, got -0.001"),
    (["--beta1", "1"], "--beta1", "below 1, got 1"),
    (["--iterations", "0"], "--iterations", "1 or more, got 0"),
    (["--iterations", str(2**63)], "--iterations", "below 2**63, got 9223372036854775808"),
    (["--rivals", "1001", "--invariance", "4"], "--rivals", "1000 at most, got 1001"),
    (["--batch", "0"], "--batch", "got 0"),
    (["--batch", "1"], "--batch", "2 or more, got 1"),
    (["--batch", "41"], "a batch of 41 is larger than the set of 40 images", "--batch 40 or less"),
    (["--save-every", "-2"], "--save-every", "got -2"),
    (["--keep", "0"], "--keep", "got 0"),
    (["--reject-limit", "1.5"], "--reject-limit", "from 0 to 1, got 1.5"),
    (["--seed", "-1"], "--seed", "got -1"),
    (["--device", "tpu"], "'tpu'", "choose auto, cpu, cuda or cuda:N"),
    (["--device", "mps"], "'mps'", "choose auto, cpu, cuda or cuda:N"),
    (["--device", "cpu:5"], "'cpu:5'", "choose auto, cpu, cuda or cuda:N"),
    (["--device", "cuda:99"], "--device cuda:99", "choose --device cpu"),
    (["--tables", "celeba"], "fashion-mnist holds 28x28x1 images", "celeba networks take 32x32x3", "--tables mnist"),
    (["--tables", "chairs"], "fashion-mnist holds 28x28x1 images", "chairs networks take 64x64x1", "--tables mnist"),
    (["--tables", "celeba", "--gray"], "--gray gives 1-channel images", "celeba networks take 3", "give --no-gray"),
    (["--placement", "stream"], "fashion-mnist", "cannot be streamed", "--placement resident"),
    (["--config", "absent.json"], "absent.json", "give a run folder or its config.json"),
    (["--resume", "absent"], "no run or checkpoint at absent", "give the folder of a run"),
]


@pytest.mark.parametrize(
    ("flags", "parts"), [(row[0], row[1:]) for row in FLAGS], ids=[" ".join(row[0]) for row in FLAGS]
)
def test_a_flag_that_cannot_work_is_one_sentence_before_any_work(
    tmp_path: Path, tiny_flags: list[str], command: Command, flags: list[str], parts: tuple[str, ...]
) -> None:
    ended = command(train, *tiny_flags, *flags)
    assert_told(ended, *parts)
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("below", ["file", "file/deeper", "/proc/fastinfogan"])
def test_a_run_folder_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, tiny_flags: list[str], command: Command, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = command(train, *tiny_flags, "--run-dir", below)
    assert_told(ended, f"cannot write to the run folder {below}", "choose another --run-dir")
    assert ended.err.count("\n") == 1 and (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_place_where_no_folder_can_be_made_is_told_before_any_work(
    tmp_path: Path, tiny_flags: list[str], command: Command, dangling: bool
) -> None:
    if dangling:
        (tmp_path / "runs").symlink_to(tmp_path / "absent")
    else:
        (tmp_path / "runs").write_text("in the way")
    ended = command(train, *tiny_flags)
    assert_told(ended, "cannot write to the run folder runs/fashion-mnist-", "(File exists)", "another --run-dir")
    assert ended.err.count("\n") == 1


def test_a_new_run_does_not_write_over_another(
    finished: tuple[Path, Outcome], tiny_flags: list[str], command: Command
) -> None:
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = command(train, *tiny_flags, "--run-dir", folder)
    assert_told(ended, f"{folder} holds a run already", f"--resume {folder}", "another --run-dir")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full_at_save_leaves_and_names_the_checkpoint_before(
    tmp_path: Path, tiny_flags: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def filling(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:  # config.json, the first checkpoint's file and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    ended = command(train, *tiny_flags, "--save-every", "2", "--keep", "1", "--run-dir", "run")
    last = "run/checkpoints/step-00000002.safetensors"
    assert_told(ended, "could not save step 4", "No space left", f"{last}, is intact", "--resume run")
    assert [str(path) for path in Path("run/checkpoints").iterdir()] == [last]
    assert checkpoint.load(tmp_path / "run").step == 2


@pytest.fixture
def copied(tmp_path: Path, finished: tuple[Path, Outcome]) -> Path:
    """A copy of the finished run of six iterations."""
    return Path(shutil.copytree(finished[0], tmp_path / "copied"))


@pytest.mark.parametrize(
    ("flags", "tensor"),
    [
        (["--noise", "7"], "generator.blocks.0.linear.weight is (16, 18) in it and (16, 19)"),
        (["--codes", "cat:11", "uniform:2"], "generator.blocks.0.linear.weight"),
        (["--codes", "cat:10", "cat:2"], "discriminator.confusions"),
        (["--tables", "faces"], "generator."),
        (["--rivals", "3"], "discriminator."),
    ],
)
def test_resume_with_another_architecture_is_refused_and_changes_nothing(
    copied: Path, command: Command, flags: list[str], tensor: str
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    ended = command(train, "--resume", copied, "--iterations", "9", *flags)
    assert_told(ended, "is of another architecture", tensor, "leave --tables, --noise, --codes, --learn-prior, --riv")
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_an_earlier_checkpoint_whose_moments_are_damaged_is_refused_and_changes_nothing(
    copied: Path, command: Command
) -> None:
    earlier = copied / "checkpoints" / "step-00000004.safetensors"
    with safetensors.safe_open(earlier, "pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(earlier)
    damaged = next(name for name in tensors if name.startswith("discriminator_optimiser.") and "exp_avg" in name)
    tensors[damaged] = tensors[damaged].flatten()[:1]
    safetensors.torch.save_file(tensors, earlier, metadata)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}
    ended = command(train, "--resume", earlier, "--iterations", "9")
    assert_told(ended, "which is not what Adam keeps of its weight", "resume from another one")
    after = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before


def test_resume_with_black_and_white_exchanged_is_refused(copied: Path, command: Command) -> None:
    ended = command(train, "--resume", copied, "--iterations", "9", "--invert")
    assert_told(ended, "trained with --no-invert and cannot go on with --invert", "drop the flag")


def test_resume_goes_on_in_the_run_s_own_folder(copied: Path, tmp_path: Path, command: Command) -> None:
    ended = command(train, "--resume", copied, "--iterations", "8", "--run-dir", tmp_path / "other")
    assert_told(ended, f"--resume goes on in the run's own folder {copied}", "leave --run-dir out")
    assert not (tmp_path / "other").exists()
    (tmp_path / "link").symlink_to(copied)
    assert command(train, "--resume", copied, "--iterations", "8", "--run-dir", tmp_path / "link").code == 0


def test_resume_of_a_run_that_was_moved_goes_on_where_it_lies_now(
    copied: Path, tmp_path: Path, command: Command
) -> None:
    recorded = read_config(copied).run_dir
    assert recorded is not None and recorded != copied
    ended = command(train, "--resume", copied, "--iterations", "8", "--run-dir", recorded)
    assert_told(ended, f"--resume goes on in the run's own folder {copied}", "leave --run-dir out")
    assert command(train, "--resume", copied, "--iterations", "8").code == 0
    assert read_config(copied).run_dir == recorded


def test_resume_of_a_finished_run_asks_for_more_iterations(copied: Path, command: Command) -> None:
    ended = command(train, "--resume", copied)
    assert_told(ended, "step-00000006.safetensors has done its 6 iterations", "ask for more with --iterations")
    ended = command(train, "--resume", copied, "--iterations", "8")
    assert ended.code == 0 and checkpoint.load(copied).step == 8


@pytest.mark.parametrize("module", [train, evaluate, generate])
def test_a_checkpoint_that_is_truncated_foreign_or_a_pickle_is_one_sentence(
    tmp_path: Path, copied: Path, command: Command, module: ModuleType
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    newest = copied / "checkpoints" / "step-00000006.safetensors"
    flags = ["--resume"] if module is train else []
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert_told(
        command(module, *flags, copied), "step-00000006.safetensors is truncated or no checkpoint", "resume from"
    )
    torch.save(Trap(), newest)
    assert_told(command(module, *flags, copied), "is truncated or no checkpoint")
    assert not (tmp_path / "sprung").exists()
    safetensors.torch.save_file({"weight": torch.ones(2)}, newest)
    assert_told(command(module, *flags, copied), "is a safetensors file but no checkpoint of fastinfogan's")
    assert_told(command(module, *flags, tmp_path / "nowhere"), "no run or checkpoint at", "give the folder of a run")
    (tmp_path / "empty").mkdir()
    assert_told(command(module, *flags, tmp_path / "empty"), "no checkpoint in", "give the folder of a run")


def test_a_configuration_with_an_unknown_key_is_one_sentence(tmp_path: Path, command: Command) -> None:
    text = to_json(TrainConfig()).replace('"iterations"', '"iteration"')
    (tmp_path / "config.json").write_text(text)
    assert_told(command(train, "--config", tmp_path), "config.json", "iteration")
    (tmp_path / "config.json").write_text(to_json(replace(TrainConfig(), lr_d=-1.0)))
    assert_told(command(train, "--config", tmp_path), "--lr-d must be above 0, got -1.0")


def test_an_unknown_backend_is_one_sentence(
    tmp_path: Path, tiny_flags: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTINFOGAN_BACKEND", "tritn")
    assert_told(command(train, *tiny_flags), "unknown backend 'tritn'", "choose one of reference")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unsupported_dtype_is_told_with_what_is_supported(tiny_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(UserError, match=r"float32, bfloat16 or float16, not torch\.float64"):
        sample_latents(tiny_config().spec, 4, seed=0, step=0, dtype=torch.float64)


GENERATE = [
    (["--set", "c9=1"], "--set c9=1: there is no code 'c9'", "this run has c1, c2, c3"),
    (["--set", "c1"], "--set c1: expected a number after c1=, -3.4e38 to 3.4e38, got ''"),
    (["--set", "c1=two"], "--set c1=two: expected a number", "'two'"),
    (["--set", "c1=10"], "--set c1=10: c1 has the categories 0 to 9"),
    (["--set", "c1=2.5"], "c1 has the categories 0 to 9"),
    (["--set", "c1=-1"], "c1 has the categories 0 to 9"),
    (["--set", "c2=nan"], "--set c2=nan: expected a number"),
    (["--set", "c2=inf"], "--set c2=inf: expected a number"),
    (["--set", "c2=1e39"], "--set c2=1e39: expected a number after c2=, -3.4e38 to 3.4e38", "'1e39'"),
    (["--set", "c2=-3.5e38"], "--set c2=-3.5e38: expected a number"),
    (["--count", "0"], "--count must be 1 or more and at most 100,000, got 0"),
    (["--count", "100001"], "--count must be 1 or more and at most 100,000, got 100001"),
    (["--seed", "-1"], "--seed must be 0 to 2**64 - 1, got -1"),
    (["--seed", str(2**64)], "--seed must be 0 to 2**64 - 1, got 18446744073709551616"),
    (["--what", "traversals", "--set", "c1=3"], "--set does not go with traversals", "drop one of them"),
    (
        ["--what", "traversals", "--out", "/proc/none"],
        "cannot write the picture /proc/none/",
        "choose another folder as --",
    ),
    (["--out", "picture.what"], "cannot write the picture picture.what", "ending in .png"),
    (["--out", "/proc/none/picture.png"], "cannot write the picture /proc/none/picture.png", "--out"),
    (["--device", "tpu"], "'tpu'", "choose auto, cpu"),
]


@pytest.mark.parametrize(
    ("flags", "parts"), [(row[0], row[1:]) for row in GENERATE], ids=[" ".join(r[0]) for r in GENERATE]
)
def test_generate_tells_what_it_cannot_draw(
    finished: tuple[Path, Outcome], command: Command, flags: list[str], parts: tuple[str, ...]
) -> None:
    # on the CPU, where no self-check has something to say; of two flags the last counts
    ended = command(generate, finished[0], "--device", "cpu", *flags)
    assert_told(ended, *parts)
    assert ended.err.count("\n") == 1


def test_a_run_without_codes_has_no_traversals(tmp_path: Path, tiny_flags: list[str], command: Command) -> None:
    plain = ["--codes", "--invariance", "0", "--rivals", "0", "--q-share", "1", "--run-dir", "run"]
    assert command(train, *tiny_flags, *plain).code == 0
    ended = command(generate, "run", "--what", "traversals")
    assert_told(ended, "--what traversals runs along codes, and run was trained without any")


def test_a_disk_that_is_full_keeps_the_picture_from_before(copied: Path, command: Command) -> None:
    (copied / "picture.png").write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        ended = command(generate, copied, "--out", copied / "picture.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_told(ended, f"cannot write the picture {copied}/picture.png", "too large")
    assert (copied / "picture.png").read_bytes() == b"before" and not list(copied.glob("*.partial"))


def test_evaluate_does_not_write_over_what_is_known_with_nothing(copied: Path, command: Command) -> None:
    before = (copied / "evaluation.json").read_bytes()
    assert_told(command(evaluate, copied, "--groups"), "--groups names what to measure", "choose of information")
    assert (copied / "evaluation.json").read_bytes() == before


def test_evaluate_tells_that_the_set_is_absent(
    tmp_path: Path, copied: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "FASHION_HOME", tmp_path / "debian")  # this machine may have one of its own
    (copied / "evaluation.json").unlink()
    assert_told(command(evaluate, copied, "--data", tmp_path / "none"), "train-images-idx3-ubyte", "first folder")
    assert not (copied / "evaluation.json").exists()


def test_evaluate_shows_what_it_cannot_write(copied: Path, command: Command) -> None:
    (copied / "evaluation.json").unlink()
    (copied / "evaluation.json").mkdir()
    ended = command(evaluate, copied)
    assert_told(ended, f"cannot write the evaluation {copied}/evaluation.json", "writable")
    assert "argmax Q(c|x)" in ended.out and "written to" not in ended.out


def test_a_run_shows_the_evaluation_that_it_cannot_write(
    tmp_path: Path, tiny_flags: list[str], command: Command
) -> None:
    (tmp_path / "run" / "evaluation.json").mkdir(parents=True)
    ended = command(train, *tiny_flags, "--run-dir", "run")
    assert_told(ended, "cannot write the evaluation run/evaluation.json", "writable")
    assert "argmax Q(c|x)" in ended.out and checkpoint.load(tmp_path / "run").step == 6


def test_a_disk_that_is_full_after_an_evaluation_leaves_the_one_before(
    copied: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (copied / "evaluation.json").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    ended = command(evaluate, copied)
    assert_told(ended, "cannot write the evaluation", "No space left", "free some space, and evaluate again")
    assert (copied / "evaluation.json").read_bytes() == before


def test_a_full_disk_anywhere_else_is_one_sentence_too(
    finished: tuple[Path, Outcome], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "there.png")

    monkeypatch.setattr(generate, "draw", full)
    assert_told(
        command(generate, finished[0]), "cannot write to there.png (No space left on device)", "free some space"
    )


def test_a_bug_keeps_its_traceback(tiny_flags: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PermissionError("a bug of ours")

    monkeypatch.setattr(Trainer, "draw", broken)
    with pytest.raises(PermissionError):
        command(train, *tiny_flags)
