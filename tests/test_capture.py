"""A captured iteration is the eager one: the same bits, on memory that stays, with a step that counts by itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recorder import Recorder, assert_same_state, captured, memory
from short_runs import MakeConfig, MakeTrainer, quiet

from fastinfogan import capture, checkpoint, data
from fastinfogan.capture import WARM_UP, CudaGraph, Replayed, obstacle
from fastinfogan.data import BatchPlan, ResidentBatches, StreamBatches
from fastinfogan.precision import Precision

CPU = torch.device("cpu")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "trunk gets MI": {},
    "Q learns with G": {"trunk_mi": False, "codes": ("cat:3", "gaussian:1", "cat:4"), "noise_prior": "normal"},
    "invariance": {"invariance": 0.5},
    "spectral norm": {"spectral_norm": True},
    "learnt prior": {"learn_prior": True, "invariance": 0.5, "codes": ("cat:3", "uniform:1", "cat:4")},
}


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=list(OBJECTIVES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_are_bitwise_the_eager_iterations(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    config = tiny_config(**changes)
    eager = make_trainer(config, tmp_path / "eager", dtype)
    graphed, recorder = captured(make_trainer(config, tmp_path / "graphed", dtype))
    for step in range(12):  # an epoch is five
        eager.iteration(step)
        graphed.iteration(step)
        assert_same_state(graphed, eager)
        assert graphed.clock == step + 1
    assert recorder.replays == 12 - WARM_UP
    assert graphed.metrics.count == 12
    assert graphed.metrics.read() == eager.metrics.read()


def test_a_captured_run_writes_what_an_eager_one_does(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    """Figures, readings and checkpoints come between replays and disturb nothing."""
    config = tiny_config(figure_every=3, save_every=4, log_every=2)
    eager = make_trainer(config, tmp_path / "eager")
    graphed, recorder = captured(make_trainer(config, tmp_path / "graphed"))
    lines: dict[str, list[str]] = {"eager": [], "graphed": []}
    for name, made in (("eager", eager), ("graphed", graphed)):
        assert made.train(lines[name].append).step == 11
    assert recorder.replays == 11 - WARM_UP
    one, other = (checkpoint.load(tmp_path / name) for name in ("eager", "graphed"))
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    without_rates = [[line.split("MI")[0] for line in said] for said in lines.values()]
    assert without_rates[0] == without_rates[1]
    for figure in (tmp_path / "eager" / "figures").iterdir():
        assert figure.read_bytes() == (tmp_path / "graphed" / "figures" / figure.name).read_bytes()


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_restoring_captures_anew(
    decay: float, tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    """It puts the optimisers' state elsewhere, so a graph from before it would move the old one."""
    config = tiny_config(iterations=12, decay=decay)
    unbroken, _ = captured(make_trainer(config, tmp_path / "unbroken"))
    unbroken.train(quiet)
    first, _ = captured(make_trainer(config, tmp_path / "broken"))
    for step in range(4):
        first.iteration(step)
    first.step = 4
    first.save()
    second, recorder = captured(make_trainer(config, tmp_path / "broken", step=4))
    for step in range(WARM_UP + 2):  # it is well into replaying when it is restored
        second.iteration(step)
    assert recorder.replays == 2
    second.restore(checkpoint.load(tmp_path / "broken"))
    second.train(quiet)
    assert recorder.replays == 2 + 8 - WARM_UP
    assert_same_state(second, unbroken)


def test_a_trainer_that_is_closed_holds_no_graph(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    """NCCL would wait for it where processes part."""
    made, recorder = captured(make_trainer(tiny_config(), tmp_path))
    for step in range(WARM_UP + 1):
        made.iteration(step)
    assert recorder.calls
    made.close()
    assert not recorder.calls and made.graph is None
    replays = recorder.replays
    made.iteration(WARM_UP + 1)
    assert recorder.replays == replays


def reachable(root: object) -> Iterator[torch.Tensor]:
    """Every tensor that ``root`` holds, however deep."""
    seen, left = set(), [root]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, str | int | float | type(None) | type):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
        elif not isinstance(one, Recorder) and hasattr(one, "__dict__"):
            left += vars(one).values()


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_a_graph_reads_only_memory_that_the_trainer_keeps(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, changes: dict[str, Any]
) -> None:
    """What was made for one step, or outside and let go, would be read again by every replay."""
    made, recorder = captured(make_trainer(tiny_config(**changes), tmp_path))
    kept = {memory(tensor) for tensor in reachable(made)}
    for step in range(WARM_UP):
        made.iteration(step)
    kept |= {memory(tensor) for tensor in reachable(made)}  # the optimisers' state
    for parameter in (*made.generator.parameters(), *made.discriminator.parameters()):
        parameter.grad = None  # gradients are the graph's own
    made.iteration(WARM_UP)
    assert len(recorder.outside) > 30
    assert {op for address, (_, op) in recorder.outside.items() if address not in kept} == set()


def test_replays_leave_nothing_behind(tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer) -> None:
    made, recorder = captured(make_trainer(tiny_config(), tmp_path))
    parameters = [*made.generator.parameters(), *made.discriminator.parameters()]

    def alive() -> tuple[int, list[int]]:
        gc.collect()
        tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
        return tensors, [memory(p.grad) if p.grad is not None else 0 for p in parameters]

    for step in range(WARM_UP + 2):
        made.iteration(step)
    before = alive()
    for step in range(WARM_UP + 2, WARM_UP + 9):  # over the end of an epoch
        made.iteration(step)
    assert alive() == before and recorder.replays == 9


def test_a_step_out_of_sequence_is_set_on_the_device(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    eager = make_trainer(tiny_config(), tmp_path / "eager")
    graphed, _ = captured(make_trainer(tiny_config(), tmp_path / "graphed"))
    for step in (0, 1, 2, 3, 9, 4, 2**40):
        eager.iteration(step)
        graphed.iteration(step)
    assert_same_state(graphed, eager)


def test_streamed_batches_are_copied_to_where_the_graph_reads_them(
    tmp_path: Path, photos: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    config = tiny_config(dataset="folder", data=photos, tables="celeba", codes=("cat:3",), batch=4)
    split = data.open_split("folder", photos, "train", (3, 32, 32))
    assert isinstance(split, data.Encoded)
    plan = BatchPlan(4, config.seed, -1.0, 1.0, flip=True, device=CPU)
    made = {}
    for name in ("eager", "graphed"):
        batches = StreamBatches(split, plan, image=(3, 32, 32))
        made[name] = make_trainer(config, tmp_path / name, batches=batches)
    graphed, recorder = captured(made["graphed"])
    for step in range(8):  # an epoch is six
        made["eager"].iteration(step)
        graphed.iteration(step)
    assert recorder.replays == 8 - WARM_UP
    assert_same_state(graphed, made["eager"])
    for trainer in made.values():
        trainer.batches.close()


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (lambda images: images.sum().item(), "_local_scalar_dense waits for the device"),
        (lambda images: torch.rand(2), "rand draws from the host's generator"),
        (lambda images: images.sum() + torch.tensor([1.0, 2.0]), "a constant is made on the host"),
    ],
)
def test_a_refused_capture_is_told_in_one_line_and_the_run_goes_on_eagerly(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer, poison: Callable[..., Any], reason: str
) -> None:
    eager = make_trainer(tiny_config(), tmp_path / "eager")
    made = make_trainer(tiny_config(), tmp_path / "made")
    images = made.batches.images
    made.batches.images = lambda step: (poison(seen := images(step)), seen)[1]  # type: ignore[method-assign]
    said: list[str] = []
    recorder = Recorder()
    made._run = Replayed(made._iterate, made.batches.static, recorder, said.append)
    for step in range(8):
        eager.iteration(step)
        made.iteration(step)
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith(f"iterations run op by op from here on: the capture was refused ({reason}")
    assert recorder.replays == 0
    assert_same_state(made, eager)


def test_an_input_that_moved_is_told_in_one_line_and_read_where_it_is_now(
    tmp_path: Path, tiny_config: MakeConfig, make_trainer: MakeTrainer
) -> None:
    eager = make_trainer(tiny_config(), tmp_path / "eager")
    made, said = make_trainer(tiny_config(), tmp_path / "made"), list[str]()
    recorder = Recorder()
    made._run = Replayed(made._iterate, made.batches.static, recorder, said.append)
    for step in range(10):
        if step == 6:
            assert isinstance(made.batches, ResidentBatches)
            made.batches.pixels = torch.cat([made.batches.pixels, made.batches.pixels])  # of another shape as well
        eager.iteration(step)
        made.iteration(step)
    assert recorder.replays == 6 - WARM_UP
    assert not recorder.calls  # a graph that is given up gives its memory back
    (line,) = said
    assert "an input was uint8 (40, 28, 28, 1) at 0x" in line and "and is uint8 (80, 28, 28, 1) at 0x" in line
    assert_same_state(made, eager)


@pytest.mark.parametrize(
    ("wanted", "device", "dtype", "reason"),
    [
        ("off", "cuda", torch.bfloat16, "--capture is off"),
        ("auto", "cpu", torch.float32, "only a GPU captures graphs"),
        ("auto", "cuda", torch.float16, "float16's gradient scaler keeps state on the host"),
        ("auto", "cuda", torch.bfloat16, None),
        ("auto", "cuda", torch.float32, None),
    ],
)
def test_what_cannot_be_captured_has_a_reason(
    wanted: capture.Capture, device: str, dtype: torch.dtype, reason: str | None
) -> None:
    assert obstacle(wanted, Precision(torch.device(device), dtype, "")) == reason


def test_the_recorder_executes_nothing_while_it_records_and_its_replay_executes_all() -> None:
    """The proofs above lean on it."""
    counter, seen = torch.zeros(3), torch.zeros(3)

    def body() -> None:
        nonlocal counter
        counter += 1
        seen.copy_((counter * 2).view(3) + 1)

    recorder = Recorder()
    recorder.record(body)
    assert torch.equal(counter, torch.zeros(3)) and torch.equal(seen, torch.zeros(3))
    recorder.replay()
    recorder.replay()
    assert torch.equal(counter, torch.full((3,), 2.0)) and torch.equal(seen, torch.full((3,), 5.0))


class FakeCuda:
    """Stands in for torch.cuda, and notes the order of what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        outer = self

        class Note:
            device = "cuda"

            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                outer.asked.append(name)

            def __enter__(self) -> None:
                outer.asked.append(f"in {name}")

            def __exit__(self, *_: Any) -> None:
                outer.asked.append(f"out of {name}")

            def wait_stream(self, _: Any) -> None:
                outer.asked.append(f"{name} waits")

            def replay(self) -> None:
                outer.asked.append("replay")

            def reset(self) -> None:
                outer.asked.append("reset")

        return Note


def test_the_cuda_graph_warms_up_on_the_stream_it_captures_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both streams wait for each other, and the body runs between: no GPU, but the order of the calls."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    graph = CudaGraph(CPU)
    cuda.asked.clear()
    graph.warm_up(lambda: cuda.asked.append("body"))
    assert cuda.asked == [
        "current_stream", "Stream waits", "stream", "in stream", "body", "out of stream", "current_stream waits"
    ]  # fmt: skip
    cuda.asked.clear()
    graph.record(lambda: cuda.asked.append("body"))
    assert cuda.asked == [
        "CUDAGraph",
        "stream",
        "in stream",
        "graph",
        "in graph",
        "body",
        "out of graph",
        "out of stream",
    ]
    graph.replay()
    assert cuda.asked[-1] == "replay"
    graph.release()
    assert cuda.asked[-1] == "reset"
