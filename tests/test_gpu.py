"""What only a GPU can show: numerics, stream order, capture and replay. Runs by itself wherever CUDA is present."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import quiet

from fastinfogan import Categorical, LatentSpec, Uniform, checkpoint, data
from fastinfogan.capture import WARM_UP, Replayed
from fastinfogan.config import TrainConfig
from fastinfogan.data import BatchPlan, Decoded, ResidentBatches, StreamBatches
from fastinfogan.ops import (
    head_loss,
    image_batch,
    native,
    pack_codes,
    recognize,
    sample_latents,
    traversal,
    unpack_codes,
)
from fastinfogan.ops.backend import available
from fastinfogan.ops.selfcheck import check_ops
from fastinfogan.precision import Precision
from fastinfogan.rivals import ROUNDS
from fastinfogan.run_directory import RunDirectory
from fastinfogan.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]

SPEC = LatentSpec(62, (Categorical(10), Uniform(2)))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")


def test_every_backend_of_every_op_agrees_with_the_reference(device: torch.device) -> None:
    checks = check_ops(device)
    with_triton = {"sample_latents", "head_loss", "image_batch", "pack_codes", "unpack_codes"}
    assert {check.op for check in checks} == with_triton | ({"traversal", "recognize"} if native.on_cuda() else set())
    assert all(check.agrees for check in checks), checks


def test_the_gpu_draws_the_cpus_latents(device: torch.device) -> None:
    here = sample_latents(SPEC, 513, seed=2**63 + 1, step=2**33, device=device)
    there = sample_latents(SPEC, 513, seed=2**63 + 1, step=2**33, backend="reference")
    for found, expected in zip(here, there, strict=True):
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
def test_codes_survive_packing_on_the_gpu(device: torch.device, backend: str) -> None:
    if backend not in available("cuda", native_on_cuda=True):
        pytest.skip(f"the {backend} backend is not built for CUDA here")
    latents = sample_latents(SPEC, 65, seed=1, step=0, device=device)
    noise, categories, continuous = unpack_codes(SPEC, latents.z)
    assert torch.equal(categories, latents.categories)
    assert torch.equal(pack_codes(SPEC, noise, categories, continuous, backend=backend), latents.z)


@pytest.mark.parametrize("code", [0, 2])
def test_traversals_and_recognition_on_the_gpu_are_the_cpus(device: torch.device, code: int) -> None:
    latents = sample_latents(SPEC, 10, seed=1, step=0)
    parts = unpack_codes(SPEC, latents.z)
    values = torch.arange(10) if code == 0 else torch.linspace(-2, 2, 10)
    here = traversal(SPEC, *(part.to(device) for part in parts), code=code, values=values.to(device))
    assert torch.equal(here.cpu(), traversal(SPEC, *parts, code=code, values=values, backend="reference"))
    outputs = torch.randn(33, SPEC.head_dim)
    for found, expected in zip(
        recognize(SPEC, outputs.to(device)), recognize(SPEC, outputs, backend="reference"), strict=True
    ):
        torch.testing.assert_close(found.cpu(), expected)


def test_ops_run_in_the_order_of_the_callers_stream(device: torch.device) -> None:
    """The input is overwritten on the same stream right after the call: a kernel on another stream would see it."""
    stream = torch.cuda.Stream()
    logits = torch.randn(4096, SPEC.head_dim + 1, device=device)
    latents = sample_latents(SPEC, 4096, seed=1, step=0, device=device)
    expected = _loss(logits, latents).statistics.clone()
    noise, categories, continuous = unpack_codes(SPEC, latents.z.clone())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        found = _loss(logits, latents).statistics
        packed = pack_codes(SPEC, noise, categories, continuous)
        logits.zero_()
        continuous.zero_()
    stream.synchronize()
    assert torch.equal(found, expected)
    assert torch.equal(packed, latents.z)


def test_the_loss_has_the_same_bits_every_run(device: torch.device) -> None:
    for rows in (7, 128, 4096, 65_536):
        logits = torch.randn(rows, SPEC.head_dim + 1, device=device)
        latents = sample_latents(SPEC, rows, seed=1, step=0, device=device)
        first = _loss(logits, latents).statistics
        assert all(torch.equal(_loss(logits, latents).statistics, first) for _ in range(20))


def test_a_captured_graph_draws_anew_as_its_step_advances(device: torch.device) -> None:
    seed, step = (torch.tensor(value, device=device) for value in (5, 0))
    store = torch.randint(0, 256, (64, 28, 28, 1), dtype=torch.uint8, device=device)
    index = torch.arange(32, device=device)
    logits = torch.randn(32, SPEC.head_dim + 1, device=device)

    def iteration() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        latents = sample_latents(SPEC, 32, seed=seed, step=step, device=device)
        images = image_batch(store, index, low=0.0, high=1.0, flip_seed=seed, step=step)
        return latents.z, images, _loss(logits, latents).statistics

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        iteration()  # compiles, and allocates what the kernels keep
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        captured = iteration()
        step += 1
    step.zero_()
    for expected_step in range(4):
        graph.replay()
        replayed = [tensor.clone() for tensor in captured]
        latents = sample_latents(SPEC, 32, seed=5, step=expected_step, device=device)
        images = image_batch(store, index, low=0.0, high=1.0, flip_seed=5, step=expected_step)
        for found, expected in zip(replayed, (latents.z, images, _loss(logits, latents).statistics), strict=True):
            assert torch.equal(found, expected)
    assert step.item() == 4


def test_the_loss_scale_is_read_on_the_device(device: torch.device) -> None:
    scale = torch.tensor(1024.0, device=device)
    logits = torch.randn(16, SPEC.head_dim + 1, device=device, dtype=torch.float16)
    latents = sample_latents(SPEC, 16, seed=1, step=0, device=device)
    one = _loss(logits, latents, scale)
    scale.fill_(2048.0)
    two = _loss(logits, latents, scale)
    torch.testing.assert_close(two.gradients[2], 2 * one.gradients[2])
    assert torch.equal(one.statistics, two.statistics)


def _loss(logits: torch.Tensor, latents, loss_scale: torch.Tensor | None = None):  # type: ignore[no-untyped-def]
    return head_loss(
        SPEC,
        logits[:, 0],
        recognition=logits[:, 1:],
        categories=latents.categories,
        continuous=latents.continuous,
        loss_scale=loss_scale,
    )


CONFIG = TrainConfig(
    dataset="fashion-mnist", noise=6, batch=16, iterations=30, log_every=10, figure_every=1000, save_every=1000, seed=3,
    device="cuda", invariance=1.0,
)  # fmt: skip
IMAGES = 80  # five batches are an epoch
Make = Callable[..., Trainer]


@pytest.fixture
def make(tiny_networks: None, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Make:
    """``make(name, dtype, step, **changes)``: a trainer on 80 random images, with a large eps in Adam, or it turns the
    rounding noise of another algorithm of cuBLAS into steps."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as every command has it

    def trainer(name: str, dtype: torch.dtype = torch.float32, step: int = 0, **changes: Any) -> Trainer:
        config = replace(CONFIG, **changes)
        pixels = torch.randint(0, 256, (IMAGES, 28, 28, 1), generator=torch.Generator().manual_seed(0)).byte()
        batches = ResidentBatches(
            Decoded("made", pixels), BatchPlan(config.batch, config.seed, 0.0, 1.0, flip=True, device=device)
        )
        run = RunDirectory(tmp_path / name, config, step)
        run.begin()
        made = Trainer(config, batches, run, Precision(device, dtype, "the test asks for it"))
        for phase in (made.discriminator_phase, made.generator_phase):
            phase.optimiser.param_groups[0]["eps"] = 1e-2
        return made

    return trainer


def assert_close_states(one: Trainer, other: Trainer, tolerance: float = 1e-4) -> None:
    others = other.state()
    for name, tensor in one.state().items():
        torch.testing.assert_close(
            tensor, others[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def captured(made: Trainer) -> bool:
    """Whether iterations are replays by now."""
    return made._run.graph is not None and made._run.recorded is not None


@pytest.mark.parametrize("changes", [{}, {"spectral_norm": True}, {"rivals": 3, "iterations": 10}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_replays_are_the_eager_iterations(
    make: Make, dtype: torch.dtype, tolerance: float, changes: dict[str, Any]
) -> None:
    eager = make("eager", dtype, capture="off", **changes)
    graphed = make("graphed", dtype, **changes)
    # which is captured anew, where there are heads to choose from
    choice = round(ROUNDS[-1] * graphed.config.iterations)
    for step in range(13):  # over the ends of two epochs
        eager.iteration(step)
        graphed.iteration(step)
        since = step - choice if "rivals" in changes and step >= choice else step
        assert captured(graphed) == (since >= WARM_UP)
    assert not captured(eager)
    assert graphed.clock.item() == 13 and graphed.metrics.count.item() == 13
    assert_close_states(graphed, eager, tolerance)


def test_a_step_out_of_sequence_is_replayed_as_well(make: Make) -> None:
    eager, graphed = make("eager", capture="off"), make("graphed")
    for step in (0, 1, 2, 3, 4, 17, 2**40, 5):
        eager.iteration(step)
        graphed.iteration(step)
    assert captured(graphed)
    assert_close_states(graphed, eager)


@pytest.mark.parametrize("capture", ["auto", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_iteration_waits_for_the_gpu(make: Make, dtype: torch.dtype, capture: str) -> None:
    made = make("run", dtype, capture=capture)
    for step in range(WARM_UP + 2):
        made.iteration(step)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(WARM_UP + 2, WARM_UP + 14):  # with the orders of two epochs
            made.iteration(step)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert captured(made) == (capture == "auto")


def test_a_replay_is_one_launch(make: Make) -> None:
    made = make("run")
    for step in range(6):
        made.iteration(step)
    torch.cuda.synchronize()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        for step in range(6, 10):  # within an epoch
            made.iteration(step)
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("cudaGraphLaunch") == 4
    assert not [name for name in counts if name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpy"))]


def test_a_run_resumed_after_capture_is_the_unbroken_one(make: Make, tmp_path: Path) -> None:
    unbroken = make("unbroken")
    assert unbroken.train(quiet).step == 30 and captured(unbroken)
    first = make("broken", iterations=17)
    first.train(quiet)
    second = make("broken", step=17)
    for step in range(8):  # it replays already when it is restored
        second.iteration(step)
    assert captured(second)
    second.restore(checkpoint.load(tmp_path / "broken"))
    assert not captured(second)
    second.train(quiet)
    assert captured(second) and second.step == 30
    assert_close_states(second, unbroken)


def test_memory_does_not_grow_with_replays(make: Make) -> None:
    made = make("run", iterations=10**6)

    def work(steps: int) -> None:
        for _ in range(steps):
            made.iteration(made.step)
            made.step += 1
        made.draw_figures("now")
        made.metrics.read()
        made.save()
        torch.cuda.synchronize()

    work(20)
    work(20)
    gc.collect()  # what earlier tests left in cycles is not to be given back in between
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(5):
        work(60)
    assert captured(made)
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() == reserved


def test_a_capture_that_is_restored_again_and_again_gives_its_memory_back(make: Make, tmp_path: Path) -> None:
    made = make("run")
    made.save()
    seen = []
    for _ in range(4):
        made.restore(checkpoint.load(tmp_path / "run"))
        for step in range(WARM_UP + 2):
            made.iteration(step)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        seen.append(torch.cuda.memory_reserved())
    assert seen[-1] <= seen[1]


def test_a_refused_capture_goes_on_eagerly_with_the_same_results(make: Make) -> None:
    eager, made, said = make("eager", capture="off"), make("made"), list[str]()
    images = made.batches.images

    def waiting(step: torch.Tensor) -> torch.Tensor:
        found = images(step)
        found.sum().item()
        return found

    made.batches.images = waiting  # type: ignore[method-assign]
    made._run = Replayed(made._iterate, made.batches.static, made.graph, said.append)
    for step in range(9):
        eager.iteration(step)
        made.iteration(step)
    assert len(said) == 1 and said[0].startswith("iterations run op by op from here on: the capture was refused (")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert_close_states(made, eager)


def test_float16_runs_eagerly(make: Make) -> None:
    made = make("run", torch.float16)
    for step in range(6):
        made.iteration(step)
    assert made.graph is None
    assert made.metrics.first_not_finite() is None


def test_streamed_batches_are_copied_to_where_the_graph_reads_them(
    make: Make, photos: Path, device: torch.device
) -> None:
    split = data.open_split("folder", photos, "train", (1, 28, 28), gray=True)
    assert isinstance(split, data.Encoded)
    eager, graphed = make("eager", capture="off", batch=4), make("graphed", batch=4)
    for made in (eager, graphed):
        made.batches = StreamBatches(
            split, BatchPlan(4, CONFIG.seed, 0.0, 1.0, flip=True, device=device), image=(1, 28, 28)
        )
        made.capture_in(made.graph)
    for step in range(8):  # an epoch is six
        eager.iteration(step)
        graphed.iteration(step)
    assert captured(graphed)
    assert_close_states(graphed, eager)
    for made in (eager, graphed):
        made.batches.close()


def test_the_networks_are_channels_last_on_the_gpu(make: Make) -> None:
    made = make("run")
    kernels = [p for p in (*made.generator.parameters(), *made.discriminator.parameters()) if p.dim() == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert made.batches.at(0).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_capture_their_all_reduces(tmp_path: Path, tiny_flags: list[str]) -> None:
    from test_distributed import Torchrun

    flags = [flag if flag != "cpu" else "cuda" for flag in tiny_flags]
    run = Torchrun([*flags, "--iterations", "60", "--run-dir", str(tmp_path / "run")], tmp_path)
    code, out, err = run.end()
    assert code == 0, err
    assert "training on 2 processes" in out and "one captured graph per iteration" in out
    assert "op by op" not in out + err
    assert checkpoint.load(tmp_path / "run").step == 60
