"""Weights that are cast together, against autocast, which casts each where it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bench.iteration_report import Launches
from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.casts import autocast
from fastinfogan.heads import answers
from fastinfogan.matrices import use_matrices
from fastinfogan.networks import TABLES, Block, Discriminator, Generator, build
from fastinfogan.ops import native
from fastinfogan.precision import Precision

CPU = torch.device("cpu")
LOW = Precision(CPU, torch.bfloat16, "a test")
SPEC = LatentSpec(6, (Categorical(4), Uniform(2)))
NETWORKS = {
    **{name: TABLES[name] for name in ("mnist", "celeba", "faces", "chairs", "dsprites")},
    "rivals": replace(TABLES["mnist"], rivals=2),
    "spectral norm": replace(TABLES["celeba"], spectral=True),
}


def made(name: str) -> tuple[Generator, Discriminator]:
    generator, discriminator = build(NETWORKS[name], SPEC, seed=1)
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator, discriminator


def blocks(*networks: nn.Module) -> list[Block]:
    return [module for network in networks for module in network.modules() if isinstance(module, Block)]


def play(name: str, together: bool) -> list[torch.Tensor | None]:
    """Outputs of both networks, and the gradients of a loss of them."""
    generator, discriminator = made(name)

    def region(*modules: nn.Module) -> AbstractContextManager[Any]:
        return autocast(LOW, *modules) if together else LOW.autocast()

    with region(generator):
        images = generator(torch.randn(4, SPEC.dim, generator=torch.Generator().manual_seed(0)))
    with region(discriminator):
        features = discriminator.features(torch.cat([images, 0.5 * images]), groups=2)
        found = [discriminator.adversarial(features), answers(discriminator.recognition_heads, features, 2)]
    sum(((output.float() + 1.0) ** 2).sum() for output in found).backward()  # type: ignore[union-attr]
    assert all(block.weights is None for block in blocks(generator, discriminator))
    gradients = [parameter.grad for network in (generator, discriminator) for parameter in network.parameters()]
    return [images.detach(), *(output.detach() for output in found), *gradients]


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_bitwise_those_of_autocast(name: str) -> None:
    found, expected = play(name, together=True), play(name, together=False)
    assert found[0] is not None and found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def test_a_weight_that_is_passed_through_is_asked_for_no_gradient() -> None:
    _, discriminator = made("mnist")
    for parameter in discriminator.trunk.parameters():
        parameter.requires_grad_(False)
    with autocast(LOW, discriminator):
        for block in blocks(discriminator.trunk):
            assert block.weights is not None and not block.weights[0].requires_grad
        for block in blocks(discriminator.recognition_head):
            assert block.weights is not None and block.weights[0].requires_grad


def test_all_weights_are_one_cast_and_their_gradients_another() -> None:
    generator, _ = made("mnist")
    z = torch.randn(4, SPEC.dim)
    with Launches() as counted:
        with autocast(LOW, generator):
            images = generator(z)
        images.float().sum().backward()
    assert counted.ops["aten._foreach_copy_"] == 2
    assert counted.ops["aten._to_copy"] == 3  # z, the images for the sum, and the gradient of these


def test_what_has_weights_of_its_own_is_left_to_autocast() -> None:
    generator, discriminator = made("spectral norm")
    generator.compile()
    with autocast(LOW, generator, discriminator):
        assert all(block.weights is None for block in blocks(generator, discriminator))
    generator, discriminator = made("mnist")
    with autocast(replace(LOW, dtype=torch.float32), generator, discriminator):
        assert all(block.weights is None for block in blocks(generator, discriminator))
    if native.available():
        use_matrices([generator], LOW)
        with autocast(LOW, generator, discriminator):
            assert all(block.weights is None for block in blocks(generator))
            assert all(block.weights is not None for block in blocks(discriminator))


def test_after_an_exception_blocks_have_their_own_weights_again() -> None:
    generator, _ = made("mnist")
    with pytest.raises(RuntimeError, match="out of luck"), autocast(LOW, generator):
        raise RuntimeError("out of luck")
    assert all(block.weights is None for block in blocks(generator))
