"""Networks whose layers are matrix products compute what their modules compute, in any precision."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from layer_checks import NATIVE, assert_as_accurate
from torch import nn

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.errors import UserError
from fastinfogan.matrices import use_matrices
from fastinfogan.networks import TABLES, build
from fastinfogan.precision import Precision

pytestmark = pytest.mark.usefixtures("seeded")
CPU = torch.device("cpu")
SPEC = LatentSpec(6, (Categorical(4), Uniform(2)))
NETWORKS = {**TABLES, "spectral norm": replace(TABLES["dsprites"], spectral=True)}


def pair(name: str, dtype: torch.dtype) -> tuple[list[nn.Module], list[nn.Module], Any]:
    """Stock networks and the same as matrices, with weights large enough for every unit to be awake."""
    stock = list(build(NETWORKS[name], SPEC, seed=1))
    for network in stock:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for parameter in network.parameters():
            with torch.no_grad():
                parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    mine = copy.deepcopy(stock)
    return stock, mine, use_matrices(mine, Precision(CPU, dtype, "a test"))


def play(networks: list[nn.Module], z: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of G, and of D and Q on two groups; the gradients of a loss of them are left at the weights."""
    generator, discriminator = networks
    images = generator(z)
    features = discriminator.features(torch.cat([images, 0.5 * images]), groups=2)  # type: ignore[operator]
    outputs = [images, discriminator.adversarial(features), discriminator.recognition(features, groups=2)]  # type: ignore[operator]
    sum((output.float() ** 2).sum() for output in outputs[1:]).backward()  # type: ignore[union-attr]
    return [output.detach().float() for output in outputs]


@NATIVE
@pytest.mark.parametrize("name", NETWORKS)
def test_matrices_compute_what_the_modules_compute(name: str) -> None:
    stock, mine, copies = pair(name, torch.float32)
    assert copies == {}
    exact = [copy.deepcopy(network).double() for network in stock]
    z = torch.randn(16, SPEC.dim, generator=torch.Generator().manual_seed(0))
    outputs = [play(networks, z.to(next(networks[0].parameters()).dtype)) for networks in (mine, stock, exact)]
    for found, library, truth in zip(*outputs, strict=True):
        assert_as_accurate(found, library, truth.double(), 1 << 16)
    for trio in zip(*([p for n in networks for p in n.parameters()] for networks in (mine, stock, exact)), strict=True):
        found, library, truth = (parameter.grad for parameter in trio)
        assert found.stride() == trio[0].stride() or found.is_contiguous()
        # Where a value is within rounding of an activation's kink, either implementation may fall on either side of it.
        for gradient in (found, library):
            assert (gradient.double() - truth).norm() <= 0.02 * truth.norm()
    for mine_buffer, stock_buffer in zip(
        *([b for n in networks for b in n.buffers()] for networks in (mine, stock)), strict=True
    ):
        torch.testing.assert_close(mine_buffer, stock_buffer, atol=1e-4, rtol=1e-4)


@NATIVE
def test_in_bfloat16_matrices_err_no_more_than_twice_as_autocast() -> None:
    stock, mine, copies = pair("mnist", torch.bfloat16)
    z = torch.randn(64, SPEC.dim, generator=torch.Generator().manual_seed(0))
    double = [copy.deepcopy(network).double() for network in stock]
    exact = play(double, z.double())
    with torch.autocast("cpu", torch.bfloat16):
        found, library = (play(networks, z) for networks in (mine, stock))
    for one, other, truth in zip(found, library, exact, strict=True):
        error, stock_error = ((value - truth).square().mean().sqrt().item() for value in (one, other))
        assert error <= 2 * stock_error
    weights = [p for network in mine for p in network.parameters() if p in copies]
    assert weights and all(weight.grad is None and copies[weight].grad is not None for weight in weights)
    theirs, truths = ([p.grad for n in networks for p in n.parameters() if p.dim() > 1] for networks in (stock, double))
    for weight, library, truth in zip(weights, theirs, truths, strict=True):
        found, library, truth = (
            (g if g.dim() == 2 else g.permute(0, 2, 3, 1).flatten(1)).double()
            for g in (copies[weight].grad, library, truth)
        )
        assert (found - truth).norm() <= 2 * (library - truth).norm()


@NATIVE
def test_copies_follow_weights_that_are_written_by_hand_and_stay_with_frozen_ones() -> None:
    _, (generator, _), copies = pair("mnist", torch.bfloat16)
    z = torch.randn(4, SPEC.dim)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        generator.eval()
        before = generator(z)
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
        assert not torch.equal(generator(z), before)
    for weight, matrix in copies.items():
        if weight in set(generator.parameters()):
            flat = weight.detach() if weight.dim() == 2 else weight.detach().permute(0, 2, 3, 1).flatten(1)
            assert torch.equal(matrix.detach(), flat.to(torch.bfloat16))
            weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator(z.requires_grad_()).sum().backward() is None
    assert all(matrix.grad is None for matrix in copies.values())


@NATIVE
def test_a_copy_of_a_network_has_a_life_of_its_own() -> None:
    _, (generator, _), _ = pair("mnist", torch.bfloat16)
    other = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert generator.eval()(torch.randn(2, SPEC.dim)).float().std() > 0
        assert other.eval()(torch.randn(2, SPEC.dim)).float().std() == 0


def test_without_a_cpu_or_the_extension_the_modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = list(build(TABLES["mnist"], SPEC, seed=0))
    assert use_matrices(networks, Precision(torch.device("cuda"), torch.bfloat16, "a test")) is None
    monkeypatch.setenv("FASTINFOGAN_BACKEND", "reference")
    assert use_matrices(networks, Precision(CPU, torch.bfloat16, "a test")) is None
    assert all(getattr(module, "engine", None) is None for network in networks for module in network.modules())


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_assigned_weight_is_the_one_that_is_computed_with(dtype: torch.dtype) -> None:
    _, (generator, _), _ = pair("mnist", dtype)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in generator.state_dict().items()}
    generator.eval().load_state_dict(zeros, assign=True)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert generator(torch.randn(2, SPEC.dim)).float().std() == 0


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_images_are_as_many_as_with_the_modules(dtype: torch.dtype) -> None:
    for networks in pair("mnist", dtype)[:2]:
        generator, discriminator = (network.eval() for network in networks)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            images = generator(torch.zeros(0, SPEC.dim))
            assert images.shape == (0, 1, 28, 28)
            assert [output.shape for output in discriminator(images)] == [(0,), (0, SPEC.head_dim)]


@NATIVE
def test_weights_in_another_order_than_their_copies_are_refused() -> None:
    networks = list(build(TABLES["mnist"], SPEC, seed=0))
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"channels-last order, got a weight \(.*use network\.to\("):
        use_matrices(networks, Precision(CPU, torch.bfloat16, "a test"))
    assert all(getattr(module, "engine", None) is None for network in networks for module in network.modules())
