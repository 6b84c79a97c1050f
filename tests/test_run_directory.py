"""A run's folder keeps its history through full disks and crashes, and has one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from short_runs import MakeConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastinfogan import checkpoint
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.run_directory import RunDirectory

LOCK = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)"
HOLD = f"{LOCK}; print('held', flush=True); sys.stdin.read()"


def begun(folder: Path, config: TrainConfig, step: int, **others: Any) -> RunDirectory:
    run = RunDirectory(folder, config, step, **others)
    run.begin()
    return run


@pytest.fixture
def logged(tmp_path: Path, tiny_config: MakeConfig) -> Path:
    """A folder with a line of metrics for each of the steps 2 to 40, longer together than config.json."""
    run = begun(tmp_path, tiny_config(), 0)
    for step in range(2, 41, 2):
        run.log(step, {f"loss/{name}": step / 3 for name in ("d", "d_real", "d_fake", "g", "g_fake")})
    run.close()
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lacking", ["config.json", "metrics.jsonl"])
def test_a_disk_that_is_full_at_resume_takes_nothing_from_the_history(
    logged: Path, tiny_config: MakeConfig, lacking: str
) -> None:
    before = {path: path.read_bytes() for path in logged.iterdir() if path.is_file()}
    room = 100 + (0 if lacking == "config.json" else len(before[logged / "config.json"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(UserError) as told:
            begun(logged, tiny_config(), 38)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in logged.iterdir() if path.is_file()} == before
    assert f"cannot write to the run folder {logged} (File too large)" in str(told.value)
    assert "free some space, then run the same command again" in str(told.value) and "--run-dir" not in str(told.value)


def test_metrics_are_written_anew_only_where_a_line_goes(logged: Path, tiny_config: MakeConfig) -> None:
    os.utime(logged / "metrics.jsonl", (0, 0))
    begun(logged, tiny_config(), 40).close()
    assert (logged / "metrics.jsonl").stat().st_mtime == 0
    begun(logged, tiny_config(), 38).close()
    assert (logged / "metrics.jsonl").stat().st_mtime > 0 and steps(logged) == list(range(2, 39, 2))


def test_tensorboard_forgets_the_steps_that_a_resumed_run_does_again(logged: Path, tiny_config: MakeConfig) -> None:
    run = begun(logged, tiny_config(), 36)
    for step in (38, 40):
        run.log(step, {"loss/d": -1.0})
    run.close()
    shown = EventAccumulator(str(logged)).Reload().Scalars("loss/d")
    assert [event.step for event in shown] == list(range(2, 41, 2))
    assert [event.value for event in shown][-3:] == [12.0, -1.0, -1.0]


def test_a_run_that_died_before_its_first_save_leaves_no_lines_to_the_next(
    logged: Path, tiny_config: MakeConfig
) -> None:
    run = begun(logged, tiny_config(), 0)
    run.log(2, {"loss/d": 1.0})
    run.close()
    assert steps(logged) == [2]
    assert [event.step for event in EventAccumulator(str(logged)).Reload().Scalars("loss/d")] == [2]


@pytest.mark.parametrize("damage", [b"\0" * 300 + b"\n", b'{"step": 4, "lo\n', b"\xff\xfe\n"])
def test_lines_that_a_power_cut_has_damaged_are_dropped_and_the_others_kept(
    logged: Path, tiny_config: MakeConfig, damage: bytes
) -> None:
    lines = (logged / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (logged / "metrics.jsonl").write_bytes(b"".join([*lines[:3], damage, *lines[4:], damage.rstrip(b"\n")]))
    run = begun(logged, tiny_config(), 40)
    run.log(42, {"loss/d": 1.0})
    run.close()
    assert steps(logged) == [2, 4, 6, *range(10, 43, 2)]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the run in ``tmp_path``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("step", [0, 4])
def test_a_run_that_another_process_writes_is_left_alone_until_that_one_is_gone(
    tmp_path: Path, tiny_config: MakeConfig, other: subprocess.Popen[str], step: int
) -> None:
    RunDirectory(tmp_path, tiny_config(), step, writes=False).close()  # of several processes the first one locks
    with pytest.raises(UserError, match=f"another process is writing the run in {tmp_path}: wait .* another --run-dir"):
        RunDirectory(tmp_path, tiny_config(), step)
    assert not (tmp_path / "config.json").exists()
    other.kill()
    other.wait()
    begun(tmp_path, tiny_config(), step).close()
    assert (tmp_path / "config.json").exists()


def test_after_a_restart_the_lock_of_a_machine_that_is_gone_is_waited_for(
    tmp_path: Path, tiny_config: MakeConfig, other: subprocess.Popen[str]
) -> None:
    threading.Timer(0.5, other.kill).start()
    begun(tmp_path, tiny_config(), 4, wait=60).close()
    assert other.wait() != 0


def test_a_new_run_does_not_begin_beside_what_it_waited_for(
    tmp_path: Path, tiny_config: MakeConfig, other: subprocess.Popen[str]
) -> None:
    def save_and_end() -> None:
        (tmp_path / checkpoint.FOLDER).mkdir()
        (tmp_path / checkpoint.FOLDER / "step-00000004.safetensors").touch()
        other.kill()

    threading.Timer(0.5, save_and_end).start()
    with pytest.raises(UserError, match=f"{tmp_path} holds a run already"):
        RunDirectory(tmp_path, tiny_config(), 0, wait=60)


def test_a_checkpoint_that_another_process_saved_before_it_ended_is_not_gone_back_behind(
    logged: Path, tiny_config: MakeConfig
) -> None:
    folder = logged / checkpoint.FOLDER
    folder.mkdir()
    chosen, later = folder / "step-00000020.safetensors", folder / "step-00000040.safetensors"
    chosen.touch()
    begun(logged, tiny_config(), 40, newest=chosen).close()
    later.touch()
    with pytest.raises(UserError, match=f"changed from {chosen.name} to {later.name} while this run was starting: "):
        RunDirectory(logged, tiny_config(), 20, newest=chosen)
    assert later.exists() and steps(logged)[-1] == 40
    begun(logged, tiny_config(), 20).close()  # of a checkpoint that was named
    assert steps(logged)[-1] == 20


def test_an_open_run_keeps_other_processes_out_until_it_is_closed(tmp_path: Path, tiny_config: MakeConfig) -> None:
    run = begun(tmp_path, tiny_config(), 0)
    attempt = [sys.executable, "-c", LOCK, str(tmp_path / "lock")]
    assert "BlockingIOError" in subprocess.run(attempt, capture_output=True, text=True).stderr
    run.close()
    assert subprocess.run(attempt).returncode == 0


def test_a_file_system_without_locks_is_trained_on_without_one(
    tmp_path: Path, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unknown)
    run = begun(tmp_path, tiny_config(), 0)
    run.log(2, {"loss/d": 1.0})
    run.close()
    assert steps(tmp_path) == [2]


def test_what_is_of_later_steps_goes_only_once_the_run_begins(logged: Path, tiny_config: MakeConfig) -> None:
    folder = logged / checkpoint.FOLDER
    folder.mkdir()
    paths = [folder / f"step-{step:08d}.safetensors" for step in (10, 20, 40)]
    for path in paths:
        path.touch()
    before = {path: path.read_bytes() for path in (logged / "config.json", logged / "metrics.jsonl")}
    run = RunDirectory(logged, tiny_config(lr_d=0.125), 20)
    assert before == {path: path.read_bytes() for path in before} and all(path.exists() for path in paths)
    run.begin()
    run.close()
    assert [path.exists() for path in paths] == [True, True, False] and checkpoint.newest(logged) == paths[1]
    assert steps(logged)[-1] == 20 and json.loads((logged / "config.json").read_text())["lr_d"] == 0.125
