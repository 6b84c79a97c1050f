"""Ctrl-C, SIGTERM and a reader that is gone end a run that is saved, with the command that goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from short_runs import MakeConfig, MakeTrainer, after, quiet, saved_steps, stop_after

from fastinfogan import checkpoint, evaluate, train
from fastinfogan.distributed import LostProcess
from fastinfogan.metrics import evaluation
from fastinfogan.trainer import Stopped, Trainer


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves_with_the_command_that_goes_on(
    tmp_path: Path,
    tiny_networks: None,
    tiny_flags: list[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    iterate = Trainer.iteration
    monkeypatch.setattr(Trainer, "iteration", lambda *a: (iterate(*a), a[1] == 2 and signal.raise_signal(number)))
    handler = signal.getsignal(signal.SIGINT)
    ended = command(train, *tiny_flags, "--run-dir", tmp_path / "run")
    assert ended.code == code
    assert f"stopped and saved at step 3; go on with: python -m fastinfogan.train --resume {tmp_path}/run" in ended.out
    assert "stopping after this iteration, then saving" in ended.err
    assert checkpoint.load(tmp_path / "run").step == 3
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("during", [(Trainer, "iteration"), (checkpoint, "save")])
def test_a_signal_at_the_very_end_leaves_the_evaluation_to_its_command(
    tmp_path: Path,
    tiny_networks: None,
    tiny_flags: list[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    during: tuple[Any, str],
) -> None:
    real = getattr(*during)

    def act(*arguments: Any) -> Any:
        if arguments[1] in (5, 6):  # the iteration after five, or the save of step six
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(*during, act)
    ended = command(train, *tiny_flags, "--run-dir", tmp_path / "run")
    assert ended.code == 143 and not (tmp_path / "run" / "evaluation.json").exists()
    last = f"that was the last; judge it with: python -m fastinfogan.evaluate {tmp_path}/run"
    assert f"stopped and saved at step 6; {last}" in ended.out
    assert command(evaluate, tmp_path / "run").code == 0 and (tmp_path / "run" / "evaluation.json").exists()


def test_a_reader_that_is_gone_ends_the_run_and_it_is_saved(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    config = tiny_config(iterations=7, log_every=2, save_every=100)
    assert make_trainer(config, tmp_path).train(gone) == Stopped(2, signal.SIGPIPE)
    assert saved_steps(tmp_path) == [2]


def test_a_reader_that_is_gone_when_a_rival_is_chosen_ends_the_run_and_it_is_saved(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    made = make_trainer(tiny_config(invariance=0.5, rivals=2, iterations=20, log_every=100, save_every=100), tmp_path)
    made.discriminator_phase.rivalry.choose = lambda: (2, [0.5, 0.4, 0.25])  # type: ignore[method-assign]
    stopped = made.train(gone)
    assert stopped.signal == signal.SIGPIPE and 0 < stopped.step < 20
    assert saved_steps(tmp_path) == [stopped.step]


def test_ctrl_c_that_ends_the_reader_of_stderr_as_well_saves_all_the_same(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for all of a pipeline: train 2>&1 | tee log."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    made = make_trainer(tiny_config(iterations=7, save_every=100), tmp_path)
    monkeypatch.setattr(sys, "stderr", Gone())
    after(3, made, lambda: signal.raise_signal(signal.SIGINT))
    assert made.train(quiet) == Stopped(3, signal.SIGINT)
    assert saved_steps(tmp_path) == [3]


@pytest.fixture
def terminable() -> Iterator[None]:
    """SIGTERM as it was, afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("terminable")
def test_a_run_that_has_lost_a_process_tells_so_though_torchrun_ends_it_meanwhile(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    advice = made._advice

    def lost() -> None:
        raise LostProcess("process 0 lost another one (a test)")

    def terminated(resume: str, restart: str) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return advice(resume, restart)

    after(3, made, lost)
    monkeypatch.setattr(made, "_advice", terminated)
    with pytest.raises(LostProcess, match=r"lost another one \(a test\) after step 2: there is no checkpoint yet"):
        made.train(quiet)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, first: signal.Signals, second: signal.Signals
) -> None:
    class AtOnce(BaseException):
        pass

    def act(*_: Any) -> None:
        raise AtOnce

    made = make_trainer(tiny_config(), tmp_path)

    def twice() -> None:
        signal.raise_signal(first)
        signal.raise_signal(second)

    after(3, made, twice)
    before = {number: signal.signal(number, act) for number in (first, second)}
    try:
        with pytest.raises(AtOnce):
            made.train(quiet)
        assert all(signal.getsignal(number) is act for number in (first, second))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert saved_steps(tmp_path) == []


PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
PROGRAM = """
import sys
sys.path[:0] = {paths!r}
from conftest import GREY
from fastinfogan import networks, train
from fastinfogan.commands import run_command
networks.TABLES["mnist"] = GREY
run_command(train.main)
"""


def test_an_evaluation_keeps_no_signal_waiting(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it is not done when the next is due: the checkpoint comes first, then the wait."""
    saved, found = threading.Event(), evaluation.evaluate
    save = checkpoint.save
    in_time: list[bool] = []
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (save(*arguments), saved.set()))
    monkeypatch.setattr(evaluation, "evaluate", lambda *a: (in_time.append(saved.wait(20)), found(*a))[1])
    made = make_trainer(tiny_config(evaluate_every=2), tmp_path)
    stop_after(4, made)
    assert made.train(quiet) == Stopped(4, signal.SIGTERM)
    assert saved_steps(tmp_path) == [4] and in_time == [True]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/mi/total" in line] == [2]


def test_a_second_ctrl_c_waits_for_no_evaluation(tmp_path: Path, tiny_flags: list[str]) -> None:
    endless = "from fastinfogan.metrics import evaluation\nevaluation.evaluate = lambda *_: time.sleep(1000)\n"
    program = "import time\n" + PROGRAM.replace("run_command(", endless + "run_command(")
    flags = [*tiny_flags, "--iterations", "1000000", "--evaluate-every", "3", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program.format(paths=PATHS), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        next(line for line in process.stdout if "4/1000000" in line)  # the evaluation of step 3 has begun
        process.send_signal(signal.SIGINT)
        next(line for line in process.stderr if "once more to stop at once" in line)
        while not saved_steps(tmp_path / "run"):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err


def test_a_real_process_saves_at_sigterm(tmp_path: Path, tiny_flags: list[str]) -> None:
    flags = [*tiny_flags, "--iterations", "1000000", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM.format(paths=PATHS), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if "images/s" in line:  # it trains
                process.send_signal(signal.SIGTERM)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert f"go on with: python -m fastinfogan.train --resume {tmp_path}/run" in out and "Traceback" not in err
    assert checkpoint.load(tmp_path / "run").step >= 2
