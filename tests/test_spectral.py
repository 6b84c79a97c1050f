"""Weights of spectral norm 1, all layers of a network together, against PyTorch's own parametrization of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from bench.iteration_report import Launches
from fastinfogan.spectral import SpectralNorms

Linear = nn.Linear | nn.Conv2d

LAYERS: list[Callable[[], Linear]] = [
    lambda: nn.Linear(24, 5),
    lambda: nn.Conv2d(3, 6, 4),
    lambda: nn.Linear(1, 1),
    lambda: nn.Conv2d(1, 2, 4),
]


def made(seed: int, memory_format: torch.memory_format = torch.channels_last) -> list[Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [make().double().to(memory_format=memory_format) for make in LAYERS]


def normed(layers: list[Linear], seed: int = 0) -> SpectralNorms:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SpectralNorms(layers)


def original(layer: nn.Module) -> torch.Tensor:
    """The weight that is learnt."""
    return cast(torch.Tensor, cast(Any, layer).parametrizations.weight.original)


def pytorchs(layer: Linear, u: torch.Tensor) -> Linear:
    """``layer`` with PyTorch's spectral norm after a step from ``u``, first v and then u as in Algorithm 1; it steps
    from v, first u and then v."""
    layer = spectral_norm(layer)
    state, matrix = cast(Any, layer).parametrizations.weight[0], original(layer).detach().flatten(1)
    state._v.copy_(nn.functional.normalize(matrix.mT @ u, dim=0))
    state._u.copy_(nn.functional.normalize(matrix @ state._v, dim=0))
    return layer.eval()  # so that it only measures


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), steps=st.integers(1, 3))
def test_weights_and_gradients_are_those_of_pytorchs_own(seed: int, steps: int) -> None:
    layers, references = made(seed), made(seed)
    norms = normed(layers, seed)
    for _ in range(steps):
        before = norms.vectors.clone().split(norms.sizes)[: len(layers)]  # every u
        norms.estimate(advance=True)
    for own, reference, u in zip(layers, references, before, strict=True):
        reference = pytorchs(reference, u)
        torch.testing.assert_close(own.weight, reference.weight)
        upstream = torch.randn_like(reference.weight)
        gradients = [
            torch.autograd.grad((layer.weight * upstream).sum(), original(layer))[0] for layer in (own, reference)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_gradients_are_those_of_finite_differences(memory_format: torch.memory_format) -> None:
    layers = made(3, memory_format)
    norms = normed(layers)
    for layer in layers:

        def divided(weight: torch.Tensor, layer: Linear = layer) -> torch.Tensor:
            with torch.no_grad():
                original(layer).copy_(weight)
                norms.estimate(advance=False)
            return cast(torch.Tensor, cast(Any, layer).parametrizations.weight[0](weight))

        torch.autograd.gradcheck(divided, original(layer).detach().clone().requires_grad_())


def test_the_norm_is_one_once_the_iteration_has_settled() -> None:
    layers = made(1)
    norms = normed(layers)
    for _ in range(300):
        norms.estimate(advance=True)
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1.0, abs=1e-6)


def test_the_norm_is_nearly_one_from_the_start() -> None:
    """After five steps it would be up to 1.3."""
    for seed in range(10):
        layers = made(seed)
        normed(layers, seed)
        for layer in layers:
            assert 1.0 <= torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) + 1e-9 < 1.05


def test_a_step_leaves_what_waits_for_its_backward_pass_alone() -> None:
    layers = made(2)
    norms = normed(layers)
    norms.estimate(advance=False)
    (expected,) = torch.autograd.grad(layers[0].weight.sum(), original(layers[0]))
    waiting = layers[0].weight.sum()
    norms.estimate(advance=True)
    (gradient,) = torch.autograd.grad(waiting, original(layers[0]))
    assert torch.equal(gradient, expected)


def test_in_evaluation_the_vectors_stay_and_sigma_is_the_present_weights() -> None:
    layers = made(2)
    norms = normed(layers)
    before, divided = norms.vectors.clone(), [layer.weight.detach().clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            original(layer).mul_(7.0)
    norms.estimate(advance=False)
    assert torch.equal(norms.vectors, before)
    for layer, expected in zip(layers, divided, strict=True):
        torch.testing.assert_close(layer.weight, expected)


def test_two_forward_passes_may_come_before_their_backward_passes() -> None:
    layers = made(4)
    norms = normed(layers)
    norms.estimate(advance=True)
    alone = [torch.autograd.grad(layer.weight.square().sum(), original(layer))[0] for layer in layers]
    norms = normed(layers := made(4))
    norms.estimate(advance=True)
    first = [layer.weight.square().sum() for layer in layers]
    norms.estimate(advance=True)
    second = [layer.weight.square().sum() for layer in layers]
    for layer, expected, early, late in zip(layers, alone, first, second, strict=True):
        torch.testing.assert_close(torch.autograd.grad(early, original(layer))[0], expected, rtol=0, atol=0)
        late.backward()


def test_a_weight_of_zeros_stays_one() -> None:
    layers = made(5)
    norms = normed(layers)
    for advance in (True, False):
        with torch.no_grad():
            for layer in layers:
                original(layer).zero_()
        norms.estimate(advance=advance)
        assert all(not layer.weight.any() for layer in layers)


def test_autocast_changes_nothing() -> None:
    """Autocast would have matrix-vector products in bfloat16 on a GPU."""
    plain, low = made(6), made(6)
    for layers in (plain, low):
        for layer in layers:
            layer.float()
    of_plain, of_low = normed(plain), normed(low)
    of_plain.estimate(advance=True)
    with torch.autocast("cpu", torch.bfloat16):
        of_low.estimate(advance=True)
        weights = [layer.weight for layer in low]
    assert torch.equal(of_plain.vectors, of_low.vectors)
    assert all(torch.equal(weight, layer.weight) for weight, layer in zip(weights, plain, strict=True))


def test_a_step_of_the_iteration_is_two_products_a_layer_and_what_all_share() -> None:
    """Of a layer itself nothing but its two products and the division when its weight is read."""
    counts = []
    for n_layers in (1, len(LAYERS)):
        layers = made(0)[:n_layers]
        norms = normed(layers)
        with torch.no_grad(), Launches() as counted:
            norms.estimate(advance=True)
            for layer in layers:
                _ = layer.weight
        assert counted.ops.pop("aten.mv") == 2 * n_layers and counted.ops.pop("aten.div") == n_layers + 1
        counts.append(counted.ops)
    assert counts[0] == counts[1] and len(counts[0]) == 6 and counts[0].total() == 7  # lengths are two launches
