"""Q's head and its rivals computed together, against each of them computed alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.iteration_report import Launches
from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.heads import answers
from fastinfogan.matrices import use_matrices
from fastinfogan.networks import Blocks, Discriminator, Tables, VectorNorm, build, fc, up
from fastinfogan.ops import native
from fastinfogan.precision import Precision

CPU = torch.device("cpu")
SPEC = LatentSpec(6, (Categorical(4), Uniform(2)))
N_FEATURES = 40
TINY = Tables(
    image=(1, 8, 8),
    trunk=[fc(N_FEATURES)],
    recognition=[fc(24, norm=True)],
    generator=[fc(4, grid=4), up(1, act="sigmoid")],
)
TABLES_OF = {
    "one hidden layer": TINY,
    "none": replace(TINY, recognition=[]),
    "spectral norm": replace(TINY, spectral=True),
    "three hidden layers": replace(TINY, recognition=[fc(24, norm=True), fc(16), fc(8, norm=True)]),
}
ENGINES = [False, pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="no extension"))]


def made(name: str, rivals: int = 3, *, engine: bool = False, dtype: torch.dtype = torch.float32) -> Discriminator:
    """A discriminator with weights large enough for every unit to be awake."""
    _, discriminator = build(replace(TABLES_OF[name], rivals=rivals), SPEC, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * noise)
    discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if discriminator.spectral is not None:
        discriminator.spectral.estimate(advance=True)
    if engine:
        use_matrices([discriminator], Precision(CPU, dtype, "a test"))
    return discriminator


def features_of(rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    features = torch.randn((rows, N_FEATURES), generator=torch.Generator().manual_seed(seed))
    return features.to(dtype).requires_grad_()


def apart(heads: list[Blocks], features: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.stack([head(features, groups) for head in heads])


def played(of: Any, discriminator: Discriminator, features: torch.Tensor, groups: int) -> list[torch.Tensor]:
    """The answers, every gradient of a loss of them, and the buffers afterwards."""
    found = of(discriminator.recognition_heads, features, groups)
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).view(found.shape)
    (found * weights).float().square().sum().backward()
    learnt = [parameter.grad for head in discriminator.recognition_heads for parameter in head.parameters()]
    kept = [buffer.clone() for head in discriminator.recognition_heads for buffer in head.buffers()]
    return [found.detach(), *(grad for grad in (features.grad, *learnt) if grad is not None), *kept]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TABLES_OF)
@settings(deadline=None)
@given(rivals=st.integers(1, 7), groups=st.sampled_from([1, 2, 3]), rows=st.integers(2, 9), seed=st.integers(0, 99))
def test_together_they_are_what_each_is_alone(
    name: str, engine: bool, rivals: int, groups: int, rows: int, seed: int
) -> None:
    one = made(name, rivals, engine=engine)
    other = copy.deepcopy(one)
    if engine:
        use_matrices([other], Precision(CPU, torch.float32, "a test"))
    together = played(answers, one, features_of(groups * rows, seed=seed), groups)
    alone = played(apart, other, features_of(groups * rows, seed=seed), groups)
    assert together[0].shape == (rivals + 1, groups * rows, SPEC.head_dim)
    assert len(together) == len(alone)
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4 * max(1.0, expected.abs().max().item()), rtol=2e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_in_bfloat16_they_err_no_more_than_twice_as_each_alone(engine: bool) -> None:
    exact = made("one hidden layer").double()
    truth = apart(exact.recognition_heads, features_of(192, torch.float64), 3).detach()
    errors = []
    for of in (answers, apart):
        discriminator = made("one hidden layer", engine=engine, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            found = of(discriminator.recognition_heads, features_of(192), 3)
        assert found.dtype == torch.bfloat16
        errors.append((found.detach().double() - truth).square().mean().sqrt().item())
    assert 0 < errors[0] <= 2 * errors[1]


def test_gradients_are_those_of_finite_differences() -> None:
    discriminator = made("three hidden layers", rivals=1).double()
    features = 0.5 * features_of(8, torch.float64).detach()
    parameters = [discriminator.recognition_head[0].linear.weight, discriminator.rivals[0][2].norm.weight]  # type: ignore[index, union-attr]

    def of(*values: torch.Tensor) -> torch.Tensor:
        return answers(discriminator.recognition_heads, features, 2)

    torch.autograd.gradcheck(of, parameters, fast_mode=True)


def evaluating(discriminator: Discriminator) -> None:
    discriminator.eval()


def averaging(discriminator: Discriminator) -> None:
    for module in discriminator.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None


def of_another_kind(discriminator: Discriminator) -> None:
    """As where norms are over several processes."""
    for module in discriminator.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.__class__ = Another


class Another(VectorNorm):
    """A norm that does what it wants."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(input)


@pytest.mark.parametrize("change", [evaluating, averaging, of_another_kind])
def test_norms_that_do_not_learn_alone_are_computed_one_after_the_other(change: Any) -> None:
    one = made("one hidden layer")
    change(one)
    other = copy.deepcopy(one)
    together, alone = (played(of, d, features_of(6), 2) for of, d in ((answers, one), (apart, other)))
    assert all(torch.equal(found, expected) for found, expected in zip(together, alone, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_heads_are_as_many_launches_as_two(engine: bool) -> None:
    counts = []
    for rivals in (1, 7):
        discriminator = made("one hidden layer", rivals, engine=engine)
        with Launches() as counted:
            found = answers(discriminator.recognition_heads, features_of(12), 3)
            found.backward(torch.ones_like(found))
        counts.append(counted.ops)
    assert counts[0] == counts[1]
