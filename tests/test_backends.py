"""Switching backends changes nothing but speed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fastinfogan import Categorical, LatentSpec
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.ops import backend as backends
from fastinfogan.ops import head_loss, image_batch, pack_codes, recognize, sample_latents, traversal, unpack_codes
from fastinfogan.ops.backend import VARIABLE, available, choose
from fastinfogan.trainer import Trainer
from tests.test_head_loss import SPEC, batch

STEPS = 200

needs_native = pytest.mark.skipif("native" not in available("cpu"), reason="the C++ extension is not built")


@needs_native
def test_200_steps_on_native_are_200_steps_on_the_reference(
    make_trainer: Callable[..., Trainer],
    tiny_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Latents and images are equal bit for bit; the losses' gradients differ in the last bits of fp32.

    A GAN is chaotic: Adam's first steps have the size of the learning rate whatever the gradient's, so differences grow
    from 2e-7 at the first reading to 4e-3 after fifty steps and stay there. Every mean of ten steps must agree within
    0.02 nats, and the first within 1e-5, before anything has grown.
    """
    curves = {}
    for backend in ("reference", "native"):
        monkeypatch.setenv(VARIABLE, backend)
        trainer = make_trainer(tiny_config(iterations=STEPS), tmp_path / backend)
        readings = []
        for step in range(STEPS):
            trainer.iteration(step)
            if step % 10 == 9:
                readings.append([value for name, value in trainer.metrics.read().items() if name != "loss/g_real"])
        curves[backend] = torch.tensor(readings)
    torch.testing.assert_close(curves["native"][0], curves["reference"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(curves["native"], curves["reference"], atol=0.02, rtol=0)


@needs_native
def test_latents_and_images_do_not_depend_on_the_backend() -> None:
    store = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = [
        (
            *sample_latents(SPEC, 33, seed=2**64 - 1, step=2**40, backend=backend),
            image_batch(store, torch.arange(9), low=-1.0, high=1.0, flip_seed=1, step=2, backend=backend),
        )
        for backend in ("native", "reference")
    ]
    for native, reference in zip(*draws, strict=True):
        torch.testing.assert_close(native, reference, atol=1e-6 if native.is_floating_point() else 0, rtol=0)


@pytest.mark.parametrize("backend", available("cpu"))
def test_opcheck_of_every_op_on_every_backend(backend: str) -> None:
    ops, zero = torch.ops.fastinfogan, torch.tensor(0)
    a = batch(SPEC, 4, torch.float32)
    latents = sample_latents(SPEC, 4, seed=1, step=0)
    noise, categories, continuous = (part.clone() for part in unpack_codes(SPEC, latents.z))
    checks = {
        ops.sample_latents: (zero, zero, 4, 3, True, [4, 2], [False, True], 0, 0, torch.bfloat16, backend),
        ops.head_loss: (
            a["fake_logits"].requires_grad_(True),
            a["real_logits"].requires_grad_(True),
            a["recognition"].requires_grad_(True),
            a["categories"],
            a["continuous"],
            a["code_weights"],
            torch.tensor(2.0),
            SPEC.categorical,
            SPEC.entropies,
            False,
            False,
            backend,
        ),
        ops.image_batch: (
            torch.zeros(3, 4, 4, 1, dtype=torch.uint8), torch.arange(2), 0.0, 1.0, zero, zero, 0, torch.float32,
            backend,
        ),
        ops.pack_codes: (
            noise.requires_grad_(True), categories, continuous.requires_grad_(True), SPEC.categorical, torch.float32,
            backend,
        ),
        ops.unpack_codes: (latents.z, SPEC.noise, SPEC.categorical, backend),
        ops.traversal: (
            noise.detach(), categories, continuous.detach(), 0, torch.arange(4), SPEC.categorical, torch.float32,
            backend,
        ),
        ops.recognize: (a["recognition"].detach(), SPEC.categorical, backend),
    }  # fmt: skip
    for op, arguments in checks.items():
        torch.library.opcheck(op, arguments)


def test_a_function_of_all_ops_traces_as_one_graph() -> None:
    store = torch.randint(0, 256, (8, 4, 4, 1), dtype=torch.uint8)

    def everything(index: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        latents = sample_latents(SPEC, 8, seed=seed, step=step)
        images = image_batch(store, index, low=0.0, high=1.0, flip_seed=seed, step=step)
        noise, categories, continuous = unpack_codes(SPEC, latents.z)
        z = pack_codes(SPEC, noise, categories, continuous)
        swept = traversal(SPEC, noise, categories, continuous, code=0, values=torch.arange(4))
        seen = recognize(SPEC, scores)
        loss = head_loss(
            SPEC,
            images.mean((1, 2, 3)) * z.sum(1),
            real_logits=scores[:, 0],
            recognition=scores,
            categories=latents.categories,
            continuous=latents.continuous,
        )
        return loss.loss + loss.information.sum() + swept.sum() + seen.confidence.sum() + seen.std.sum()

    arguments = (torch.arange(8), torch.tensor(1), torch.tensor(2), torch.randn(8, SPEC.head_dim))
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), everything(*arguments))


def test_a_reference_makes_its_constants_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured iteration may run it, and what is copied from the host would refuse the capture."""

    def play() -> None:
        latents = sample_latents(SPEC, 8, seed=1, step=2, backend="reference")
        head_loss(
            SPEC, torch.zeros(8), recognition=torch.zeros(8, SPEC.head_dim), categories=latents.categories,
            continuous=latents.continuous, backend="reference",
        )  # fmt: skip

    play()
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("made on the host"))
    play()


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device with Triton for most ops and CUDA kernels for some, as far as the choice goes."""

    def found(device_type: str, native_on_cuda: bool = False) -> tuple[str, ...]:
        assert device_type == "cuda"
        return ("native", "triton", "reference") if native_on_cuda else ("triton", "reference")

    monkeypatch.setattr(backends, "available", found)


@pytest.mark.parametrize(
    ("preferred", "op", "chosen"),
    [
        ("triton", {}, "triton"),
        ("triton", {"native_on_cuda": True}, "triton"),
        ("triton", {"native_on_cuda": True, "triton": False}, "native"),  # traversal and recognize
        ("triton", {"triton": False}, "reference"),
        ("triton", {"fused": False}, "reference"),  # float64
        ("native", {"native_on_cuda": True}, "native"),
        ("native", {}, "triton"),  # head_loss
        ("reference", {"native_on_cuda": True}, "reference"),
        ("", {"native_on_cuda": True}, "native"),
    ],
)
def test_the_environment_prefers_a_backend_where_the_op_has_it(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch, preferred: str, op: dict[str, bool], chosen: str
) -> None:
    monkeypatch.setenv(VARIABLE, preferred)
    assert choose(None, "cuda", **op) == chosen


def test_more_codes_than_the_cuda_kernels_take_are_for_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (Path(__file__).parents[1] / "csrc" / "pack_codes.cu").read_text()
    assert "MAX_CODES = 256;" in source
    asked: list[bool] = []

    def note(requested: str | None, device_type: str, *, native_on_cuda: bool, **_: bool) -> str:
        asked.append(native_on_cuda)
        return "reference"

    for module in ("pack_codes", "recognize", "traversal"):
        monkeypatch.setattr(import_module(f"fastinfogan.ops.{module}"), "choose", note)
    for n_codes, taken in ((256, True), (257, False)):
        spec = LatentSpec(1, (Categorical(2),) * n_codes)
        parts = (torch.zeros(1, 1), torch.zeros(1, n_codes, dtype=torch.int64), torch.zeros(1, 0))
        unpack_codes(spec, pack_codes(spec, *parts))
        recognize(spec, torch.zeros(1, spec.head_dim))
        traversal(spec, *parts, code=0, values=torch.zeros(2))
        assert asked == [taken] * 4
        asked.clear()


@pytest.mark.parametrize("op", [{"triton": False}, {"native_on_cuda": True, "triton": False}, {"fused": False}])
def test_the_argument_demands_a_backend(a_gpu: None, monkeypatch: pytest.MonkeyPatch, op: dict[str, bool]) -> None:
    monkeypatch.setenv(VARIABLE, "reference")  # which the argument outranks
    with pytest.raises(UserError, match="the triton backend cannot run this on cuda here: available are "):
        choose("triton", "cuda", **op)
    assert choose("triton", "cuda") == "triton"


def test_a_preference_that_no_op_of_the_device_can_meet_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.setattr(backends, "available", lambda *_, **__: ("native", "reference"))
    with pytest.raises(UserError, match="the triton backend cannot run this on cpu here: available are native, ref"):
        choose(None, "cpu")
