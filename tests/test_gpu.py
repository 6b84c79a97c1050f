"""What only a GPU can show: numerics, stream order, capture and replay. Runs by itself wherever CUDA is present."""

from __future__ import annotations

import pytest
import torch

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.ops import head_loss, image_batch, pack_codes, recognize, sample_latents, traversal, unpack_codes
from fastinfogan.ops.backend import available
from fastinfogan.ops.selfcheck import check_ops

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
    assert {check.op for check in checks} == {
        "sample_latents",
        "head_loss",
        "image_batch",
        "pack_codes",
        "unpack_codes",
    }
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
