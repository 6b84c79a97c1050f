"""A run stopped and resumed is bitwise the unbroken one; an iteration is Algorithm 1 and waits for nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan import Latents, checkpoint, evaluate, figures, rivals, train, trainer
from fastinfogan.config import TrainConfig
from fastinfogan.distributed import LostProcess
from fastinfogan.errors import UserError
from fastinfogan.ops import LOG_STD_MIN, philox
from fastinfogan.precision import Precision
from fastinfogan.rivals import ROUNDS
from fastinfogan.run_metrics import Metrics
from fastinfogan.trainer import STRETCH, Stopped, Trainer

MakeConfig = Callable[..., TrainConfig]
MakeTrainer = Callable[..., Trainer]
CPU = torch.device("cpu")


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


def fp16_trains_here() -> bool:
    try:
        with torch.autocast("cpu", torch.float16):
            F.conv2d(torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 3, 3)).sum().backward()
    except RuntimeError:
        return False
    return True


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


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
from conftest import GREY
from fastinfogan import networks, train
from fastinfogan.commands import run_command
networks.TABLES["mnist"] = GREY
run_command(train.main)
"""


def test_a_real_process_saves_at_sigterm(tmp_path: Path, tiny_flags: list[str]) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    flags = [*tiny_flags, "--iterations", "1000000", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM.format(paths=paths), *flags],
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


def test_everything_that_draws_has_a_stream_of_its_own(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTINFOGAN_BACKEND", "reference")  # which draws through this function alone
    streams, rounds = [], philox.philox
    monkeypatch.setattr(
        philox, "philox", lambda key, counter: (streams.append(int(counter[3]) >> 24), rounds(key, counter))[1]
    )
    make_trainer(tiny_config(invariance=1.0, learn_prior=True), tmp_path).iteration(0)
    assert sorted(streams) == [philox.LATENTS, philox.SHUFFLE, philox.FLIPS, philox.WARPS, philox.PRIORS]


def test_both_optimisers_have_the_betas_of_the_configuration(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(beta1=0.3, beta2=0.8), tmp_path)
    for phase in (made.discriminator_phase, made.generator_phase):
        assert [group["betas"] for group in phase.optimiser.param_groups] == [(0.3, 0.8)]


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
    with pytest.raises(UserError, match="became not finite at step 1: there is no checkpoint yet; start again with a"):
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


def test_the_generator_runs_once_per_iteration(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    calls = {"generator": 0, "trunk": 0}
    for name, module in (("generator", made.generator), ("trunk", made.discriminator.trunk)):
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    made.iteration(0)
    assert calls == {"generator": 1, "trunk": 2}  # real images and detached fakes, then fakes through the new D


class Watch(TorchDispatchMode):
    """Notes the gradients that convolutions and matrix products compute, and refuses what waits for the device."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")

    def __init__(self) -> None:
        super().__init__()
        self.weight_gradients: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        if name == "convolve_gradient" or (name == "convolution_backward" and args[10][1]):
            self.weight_gradients.append(name)
        return func(*args, **(kwargs or {}))


def test_d_gets_no_weight_gradient_in_the_g_phase(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    made.iteration(0)
    images, latents = made.batches.at(1), made.draw(1)
    fakes = made.generator(latents.z)
    made.discriminator_phase.update(images, fakes.detach(), latents)
    for parameter in made.discriminator.parameters():
        parameter.grad = None
    before = {name: tensor.clone() for name, tensor in made.discriminator.named_parameters()}
    with Watch() as watch:
        made.generator_phase.update(fakes, latents)
    assert len(watch.weight_gradients) == 2  # the generator's two transposed convolutions, none of D's
    assert all(parameter.grad is None and parameter.requires_grad for parameter in made.discriminator.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.discriminator.named_parameters())
    assert all(parameter.grad is not None for parameter in made.generator.parameters())


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_every_weight_is_moved_by_exactly_one_optimiser(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, trunk_mi: bool
) -> None:
    made = make_trainer(tiny_config(trunk_mi=trunk_mi), tmp_path)
    phases = (made.discriminator_phase, made.generator_phase)
    moved = [id(p) for phase in phases for group in phase.optimiser.param_groups for p in group["params"]]
    every = [id(p) for module in (made.generator, made.discriminator) for p in module.parameters()]
    assert sorted(moved) == sorted(every)


@contextlib.contextmanager
def no_host_reads() -> Iterator[None]:
    """Whatever would read a tensor on the host raises."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"):

            def refuse(*_: Any, name: str = name, **__: Any) -> None:
                raise AssertionError(f"Tensor.{name} waits for the device")

            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"invariance": 1.0},
        {"invariance": 1.0, "learn_prior": True},
        {"invariance": 1.0, "rivals": 2, "iterations": 40},  # rounds, from 6 on, are between iterations
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_in_an_iteration_reads_a_tensor_on_the_host(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    if dtype == torch.float16 and not fp16_trains_here():
        pytest.skip("this CPU has no float16 convolutions")
    made = make_trainer(tiny_config(**changes), tmp_path, dtype)
    with no_host_reads():
        for step in range(6):  # an epoch is five
            with Watch() if step else contextlib.nullcontext():
                made.iteration(step)
    assert made.metrics.count == 6


def nll(recognition: torch.Tensor, latents: Any) -> torch.Tensor:
    """-E[log Q] of Categorical(10) and Uniform(2), by torch.distributions."""
    mean, log_std = recognition[:, 10:12], recognition[:, 12:14].clamp(min=LOG_STD_MIN)
    normal = torch.distributions.Normal(mean, log_std.exp())
    category = torch.distributions.Categorical(logits=recognition[:, :10])
    return -category.log_prob(latents.categories[:, 0]).mean() - normal.log_prob(latents.continuous).sum(1).mean()


@pytest.mark.parametrize("trunk_mi", [True, False])
def test_an_iteration_is_algorithm_1_written_out(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, trunk_mi: bool
) -> None:
    config = tiny_config(trunk_mi=trunk_mi)
    made, plain = (make_trainer(config, tmp_path / name) for name in ("made", "plain"))
    g, d = plain.generator, plain.discriminator
    heads = {True: (d.recognition_head, None), False: (None, d.recognition_head)}[trunk_mi]
    groups = [[d.trunk, d.adversarial_head, heads[0]], [g, heads[1]]]
    # a large eps, or Adam turns rounding noise in a gradient near zero into a whole step
    adams = [
        torch.optim.Adam([p for m in modules if m for p in m.parameters()], lr=lr, betas=(0.5, 0.999), eps=1e-2)
        for modules, lr in zip(groups, (config.lr_d, config.lr_g), strict=True)
    ]
    for phase in (made.discriminator_phase, made.generator_phase):
        phase.optimiser.param_groups[0]["eps"] = 1e-2
    bce = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(config.batch), torch.zeros(config.batch)
    for step in range(3):
        made.iteration(step)
        images, latents = plain.batches.at(step), plain.draw(step)
        fakes = g(latents.z)
        real, _ = d(images) if trunk_mi else (d.adversarial(d.features(images)), None)
        features = d.features(fakes.detach())
        loss = bce(real, ones) + bce(d.adversarial(features), zeros)
        if trunk_mi:
            loss = loss + nll(d.recognition(features), latents)
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        fake, recognition = d(fakes)  # through the D that has just moved
        adams[1].zero_grad()
        (bce(fake, ones) + nll(recognition, latents)).backward()
        adams[1].step()
    for module, twin in ((made.generator, g), (made.discriminator, d)):
        for (name, tensor), other in zip(module.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_targets_of_q_are_what_the_generator_saw(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(tiny_config(), tmp_path)
    fed: list[torch.Tensor] = []
    targets: list[Latents] = []

    def find(arguments: tuple[Any, ...]) -> list[Latents]:
        return [one for one in arguments if isinstance(one, Latents)]

    made.generator.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].clone()))
    for phase in (made.discriminator_phase, made.generator_phase):
        update = phase.update
        monkeypatch.setattr(phase, "update", lambda *a, _u=update: (targets.extend(find(a)), _u(*a))[1])
    made.iteration(0)
    (z,) = fed
    assert len(targets) == 2
    for latents in targets:
        assert torch.equal(z[:, made.spec.one_hot_columns(0)].argmax(1), latents.categories[:, 0])
        assert torch.equal(z[:, made.spec.continuous_columns], latents.continuous)


def test_latents_of_a_step_are_a_function_of_seed_and_step(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    one = make_trainer(tiny_config(), tmp_path / "one")
    same = make_trainer(tiny_config(), tmp_path / "same")
    other = make_trainer(tiny_config(seed=4), tmp_path / "other")
    same.iteration(0)
    assert torch.equal(one.draw(5).z, same.draw(5).z)
    assert not torch.equal(one.draw(5).z, one.draw(6).z) and not torch.equal(one.draw(5).z, other.draw(5).z)


def test_precision_of_a_trainer_is_the_one_it_was_given(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    made = make_trainer(tiny_config(), tmp_path, torch.bfloat16)
    assert made.precision == Precision(CPU, torch.bfloat16, "the test asks for it")
    seen: list[torch.dtype] = []
    made.discriminator.adversarial_head.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    made.iteration(0)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in (*made.generator.parameters(), *made.discriminator.parameters())} == {torch.float32}


def next_update(made: Trainer, network: str) -> torch.Tensor:
    """What Adam would move ``network`` by, were the gradient to stay: all moments in one vector, in float64."""
    optimiser = getattr(made, f"{network}_phase").optimiser
    (group,) = optimiser.param_groups
    moments = [
        (optimiser.state[p]["exp_avg"].double(), optimiser.state[p]["exp_avg_sq"].double()) for p in group["params"]
    ]
    return torch.cat([(mean / (square.sqrt() + group["eps"])).flatten() for mean, square in moments])


@pytest.mark.slow
def test_compiled_networks_train_as_the_plain_ones(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Trainer:
        config = tiny_config(iterations=4, log_every=2, save_every=2, figure_every=3, **changes)
        made = make_trainer(config, tmp_path / name)
        for phase in (made.discriminator_phase, made.generator_phase):
            phase.optimiser.param_groups[0]["eps"] = 1e-2  # or Adam turns rounding noise into a whole step
        for network in (made.generator, made.discriminator):
            network.to(dtype)
        made.generator.register_forward_pre_hook(lambda _, inputs: tuple(x.to(dtype) for x in inputs))
        made.train(quiet)
        return made

    plain, compiled = trained("plain"), trained("compiled", compile=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 4, "the networks were not compiled"
    wanted = plain.state()
    for name, tensor in compiled.state().items():
        if ".exp_avg" not in name:
            torch.testing.assert_close(
                tensor, wanted[name], rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert compiled.generator.state_dict().keys() == plain.generator.state_dict().keys()
    # A moment sums what cancels, and its rounding is as large as the terms': held against what PyTorch's own errs by.
    monkeypatch.setattr(trainer, "use_matrices", lambda *_: None)
    stock, exact = trained("stock"), trained("exact", torch.float64)
    for network in ("generator", "discriminator"):
        truth = next_update(exact, network)
        errors = [(next_update(made, network) - truth).norm() for made in (compiled, stock)]
        assert errors[0] <= 2 * errors[1], (network, errors)
