"""A run split over processes is the run of one; what ends one of them ends all, with a checkpoint to go on from."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed_worker as worker
import pytest
import torch
from distributed_worker import CONFIG, NORM_SHAPES, OBJECTIVES
from torch import distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan import checkpoint, distributed, networks, train
from fastinfogan.distributed import Ranks, joined, synchronise_norms
from fastinfogan.errors import UserError
from fastinfogan.run_directory import RunDirectory

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder in which two processes worked, and what each found."""
    folder = tmp_path_factory.mktemp("two")
    common = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }  # fmt: skip
    command = [sys.executable, str(HERE / "distributed_worker.py"), str(folder)]
    processes = [
        subprocess.Popen(command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 9], "\n".join(errors)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    from conftest import _shrunk

    with _shrunk(), pytest.MonkeyPatch.context() as patch:
        worker.comparable(patch)
        yield


@pytest.fixture(scope="module")
def one(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The curve of one process, by objective."""
    folder = tmp_path_factory.mktemp("one")
    return {
        name: worker.curve(worker.trainer(replace(CONFIG, **changes), folder / str(i)))
        for i, (name, changes) in enumerate(OBJECTIVES.items())
    }


Two = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("what", ["latents", "images"])
def test_processes_see_the_rows_of_the_global_batch(two: Two, one: dict[str, Any], name: str, what: str) -> None:
    for alone, parts in zip(one[name][what], zip(*(found[name][what] for found in two[1]), strict=True), strict=True):
        assert torch.equal(alone, torch.cat(parts))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_have_the_curve_of_one_at_the_same_global_batch(two: Two, one: dict[str, Any], name: str) -> None:
    for found in two[1]:
        torch.testing.assert_close(
            torch.tensor(found[name]["readings"]), torch.tensor(one[name]["readings"]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_have_the_weights_of_one_and_the_same_in_each(two: Two, one: dict[str, Any], name: str) -> None:
    first, second = (found[name]["state"] for found in two[1])
    for key, tensor in one[name]["state"].items():
        assert torch.equal(first[key], second[key]), key
        # Both sum in their own order: an average of gradients that nearly cancel errs by the size of its neighbours.
        size = tensor.double().abs().max().item()
        torch.testing.assert_close(first[key], tensor, rtol=0, atol=5e-4 * size, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("case", range(len(NORM_SHAPES)), ids=["rows", "images"])
def test_a_synchronised_norm_is_that_of_the_whole_batch(two: Two, case: int) -> None:
    shape = NORM_SHAPES[case]
    plain = nn.BatchNorm1d(shape[1]) if len(shape) == 2 else nn.BatchNorm2d(shape[1])
    whole = worker.run_norm(plain.double(), *(tensor.double() for tensor in worker.norm_case(shape)))
    parts = [dict(found["norms"][case]) for found in two[1]]
    # Ours count no batches, which nothing reads in training.
    assert [int(of.pop("num_batches_tracked")) for of in (whole, *parts)] == [2, 0, 0]
    for name, expected in whole.items():
        if name in ("y", "dx"):
            joined_parts = torch.cat([part[name] for part in parts])
        elif name in ("weight", "bias"):  # of this process's rows: they are averaged with all other gradients
            joined_parts = parts[0][name] + parts[1][name]
        else:
            assert torch.equal(parts[0][name], parts[1][name])
            joined_parts = parts[0][name]
        torch.testing.assert_close(joined_parts.double(), expected.double(), rtol=2e-4, atol=2e-4)


def test_gradients_of_all_types_and_layouts_are_averaged(two: Two) -> None:
    expected = [torch.arange(24.0).view(1, 2, 3, 4) * 1.5, torch.tensor([1.0, 5.0]).bfloat16(), torch.tensor(0.5)]
    for found in two[1]:
        for mine, wanted in zip(found["averages"], expected, strict=True):
            assert torch.equal(mine, wanted) and mine.dtype == wanted.dtype


def test_processes_agree_on_the_host(two: Two) -> None:
    folder, (first, second) = two
    assert first["agreed"] == second["agreed"] == [False, True, "from 0"]
    assert (folder / "marks").read_text() == "01"  # the first of the machine, then the other


def test_a_signal_to_one_process_ends_all_after_the_same_iteration_and_saves_once(two: Two) -> None:
    folder, found = two
    assert [one["interrupted"][:2] for one in found] == [(3, signal.SIGTERM)] * 2
    saved = sorted(path.name for path in (folder / "interrupted" / "checkpoints").iterdir())
    assert saved == ["step-00000003.safetensors", "step-00000006.safetensors"]  # then it was resumed
    lines = [json.loads(line) for line in (folder / "interrupted" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]  # by one process


def test_a_value_that_is_not_finite_in_any_process_is_told_in_all(two: Two) -> None:
    assert [found["not finite"] for found in two[1]] == [("b", 5)] * 2


def test_a_checkpoint_between_two_readings_has_the_statistics_of_all_processes(two: Two) -> None:
    """It is saved after step 3, of readings every 2; process 0, which writes it, saw half of the rows."""
    folder, found = two
    sums = checkpoint.load(folder / "interrupted" / "checkpoints" / "step-00000003.safetensors").part("metrics")["sums"]
    of_each = [one["interrupted"][2] for one in found]
    assert not torch.equal(*of_each)
    torch.testing.assert_close(sums, sum(of_each) / 2)


def test_a_run_resumed_on_two_processes_is_the_unbroken_one(two: Two) -> None:
    for found in two[1]:
        assert found["unbroken"] == CONFIG.iterations
        for name, tensor in found["unbroken state"].items():
            if "metrics" not in name:
                assert torch.equal(found["resumed"][name], tensor), name


def test_a_group_that_has_been_left_has_no_threads(two: Two) -> None:
    """One that lets go of a tensor while the interpreter ends aborts the process; the trainers are still there."""
    during, after = two[1][0]["threads of the group, and left of it"]
    assert during > 0 and after == 0


def test_a_lost_process_is_told_with_the_checkpoint_that_goes_on(two: Two) -> None:
    folder, (first, _) = two
    assert first["lost"].startswith("process 0 lost another one (")
    path = folder / "lost" / "checkpoints" / "step-00000004.safetensors"
    assert f"after step 4: the last good checkpoint is {path}; resume it on any number of" in first["lost"]
    assert first["lost"].endswith(f"--resume {folder / 'lost'}") and "\n" not in first["lost"]


def test_a_run_of_two_processes_is_resumed_by_one(two: Two, one: dict[str, Any], tmp_path: Path) -> None:
    made = worker.trainer(CONFIG, tmp_path, step=4)
    made.restore(checkpoint.load(two[0] / "lost"))
    made.train(lambda _: None)
    for key, tensor in one["trunk gets MI"]["state"].items():
        torch.testing.assert_close(
            made.state()[key], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_a_global_batch_that_cannot_be_shared_is_told() -> None:
    with pytest.raises(UserError, match=r"--batch 128 is the global batch .* by 3 processes: choose a multiple of 3"):
        Ranks(rank=0, world=3).share(128)
    assert Ranks(rank=2, world=4).share(128) == 32
    assert Ranks(rank=0, world=2).share(2) == 1
    with pytest.raises(UserError, match=r"--batch 2 leaves each of 2 processes 1, .*choose a --batch of 4, or --sync"):
        Ranks(rank=0, world=2).share(2, least=2)


def test_one_gpu_for_several_processes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda:1 names one GPU and 2 processes"), joined("cuda:1"):
        pass


@pytest.mark.parametrize(("name", "index"), [("auto", 1), ("cuda", 1), ("cuda:0", 0)])
def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    """torch.cuda.set_device refuses a device without one."""
    chosen: list[int] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    with joined(name) as (ranks, device):
        assert ranks == distributed.ALONE and device == torch.device("cuda", index) and chosen == [index]


def test_the_backward_pass_of_a_synchronised_norm_hands_over_its_statistics(tmp_path: Path) -> None:
    """CUDA's kernel insists on them, the CPU's does without."""
    handed: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ == "native_batch_norm_backward":
                handed.append(args[5:7])
            return func(*args, **kwargs or {})

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        norm = distributed.SynchronisedNorm(3)
        x = torch.randn(8, 3, requires_grad=True)
        with Watch():
            norm(x).square().sum().backward()
    finally:
        dist.destroy_process_group()
    ((mean, inverse_std),) = handed
    assert mean is not None and inverse_std is not None
    torch.testing.assert_close(mean, x.detach().mean(0))
    torch.testing.assert_close(inverse_std, torch.rsqrt(x.detach().var(0, correction=0) + norm.eps))


def test_a_norm_that_cannot_be_synchronised_is_not_overlooked() -> None:
    class Other(nn.Module):
        running_mean = torch.zeros(1)

    with pytest.raises(AssertionError, match="Other is not known to be a batch norm"):
        synchronise_norms(nn.Sequential(Other()))


def test_a_restarted_run_goes_on_from_its_folder(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts it: the same command again, and a count in the environment."""
    monkeypatch.setattr(networks, "TABLES", networks.TABLES)
    config = replace(CONFIG, run_dir=tmp_path / "run", iterations=2)
    assert train._to_go_on_from(config, None) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert distributed.restarts() == 1
    assert train._to_go_on_from(config, None) is None  # nothing was saved before the failure: from the start
    worker.trainer(config, tmp_path / "run").train(lambda _: None)
    assert train._to_go_on_from(config, None) == tmp_path / "run"
    earlier = tmp_path / "run" / "checkpoints" / "step-00000002.safetensors"
    assert train._to_go_on_from(config, earlier) == tmp_path / "run"
    assert train.parse(["--resume", str(earlier), "--iterations", "9"])[1] == earlier
    with monkeypatch.context() as another:  # refused at its first start: the folder holds a run already
        another.setattr(os, "getppid", lambda: 1)
        assert train._to_go_on_from(config, None) is None
        another.setenv("TORCHELASTIC_RUN_ID", "of several machines")
        assert train._to_go_on_from(config, earlier) == earlier  # its first start died before it took that one up
        RunDirectory(tmp_path / "run", config, 2).begin()
        assert train._to_go_on_from(config, earlier) == tmp_path / "run"
    flags = ["--resume", str(tmp_path / "run" / "checkpoints" / "step-00000001.safetensors"), "--iterations", "9"]
    assert train.parse(flags)[1] == (tmp_path / "run").absolute()  # the run has removed that one since
    with pytest.raises(UserError, match="no folder to go on from: give --run-dir with --max-restarts"):
        train._to_go_on_from(replace(config, run_dir=None), None)


def test_the_command_to_go_on_with_has_as_many_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train._command(Ranks()) == "python -m fastinfogan.train"
    assert train._command(Ranks(0, 16, 0)) == "torchrun --nproc-per-node 16 -m fastinfogan.train"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert train._command(Ranks(0, 16, 0)) == "torchrun --nnodes 2 --nproc-per-node 8 -m fastinfogan.train"


class Torchrun:
    """``torchrun -m fastinfogan.train`` on tiny networks, with two processes unless told otherwise."""

    def __init__(self, flags: list[str], folder: Path, *launcher: str, processes: int = 2) -> None:
        program = folder / "program.py"
        paths = [str(HERE), str(HERE.parent)]
        program.write_text(
            f"import sys\nsys.path[:0] = {paths!r}\nfrom conftest import GREY\n"
            "from fastinfogan import networks, train\nfrom fastinfogan.commands import run_command\n"
            "networks.TABLES['mnist'] = GREY\nrun_command(train.main)\n"
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port"]
        self.process = subprocess.Popen(
            [*command, str(free_port()), *launcher, str(program), *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def until(self, told: str) -> None:
        """Read until a line has ``told`` in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if told in line:
                return
        raise AssertionError(self.process.communicate()[1])

    def workers(self) -> list[int]:
        """Process numbers of the training processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if "program.py" in Path(f"/proc/{child}/cmdline").read_text()]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=180)
        return self.process.returncode, out, err


@pytest.fixture
def endless(tiny_flags: list[str], tmp_path: Path) -> list[str]:
    return [*tiny_flags, "--run-dir", str(tmp_path / "run"), "--save-every", "5", "--iterations", "1000000"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves_once(endless: list[str], tmp_path: Path, number: signal.Signals) -> None:
    run = Torchrun([*endless, "--save-every", "1000000"], tmp_path)
    run.until("images/s")
    run.process.send_signal(number)
    _, out, err = run.end()
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = checkpoint.load(tmp_path / "run").step
    assert saved.name == f"step-{step:08d}.safetensors"
    assert f"stopped and saved at step {step}; go on with: torchrun --nproc-per-node 2 -m fastinfogan.train" in out
    assert "error: process" not in err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_ends_the_run_and_its_checkpoint_goes_on(
    endless: list[str], tmp_path: Path, processes: int
) -> None:
    run = Torchrun(endless, tmp_path)
    run.until("images/s")
    while not checkpoint.newest(tmp_path / "run"):
        time.sleep(0.1)
    os.kill(run.workers()[1], signal.SIGKILL)
    code, _, err = run.end()
    assert code != 0 and "error: process 0 lost another one" in err and "Traceback (most recent call last)" not in (
        err.split("error: process 0")[0]
    )  # fmt: skip
    step = checkpoint.load(tmp_path / "run").step
    again = Torchrun(["--resume", str(tmp_path / "run"), "--iterations", str(step + 3)], tmp_path, processes=processes)
    code, out, err = again.end()
    assert code == 0, err
    assert f"resuming at step {step} from" in out and checkpoint.load(tmp_path / "run").step == step + 3
    assert (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_goes_on_by_itself(tiny_flags: list[str], tmp_path: Path) -> None:
    flags = [*tiny_flags, "--run-dir", str(tmp_path / "run"), "--save-every", "5", "--iterations", "150"]
    run = Torchrun(flags, tmp_path, "--max-restarts", "1")
    run.until("images/s")
    while not checkpoint.newest(tmp_path / "run"):
        time.sleep(0.1)
    os.kill(run.workers()[1], signal.SIGKILL)
    code, out, err = run.end()
    assert code == 0, err
    assert "resuming at step " in out and checkpoint.load(tmp_path / "run").step == 150
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 151, 2))
