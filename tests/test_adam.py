"""Adam in one pass: PyTorch's own, with low-precision copies of the weights that are refreshed on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_checks import BACKENDS
from torch import nn

from fastinfogan.errors import UserError
from fastinfogan.ops.adam import adam
from fastinfogan.optimiser import RefreshingAdam

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16])
def test_adam_is_torchs_and_its_copies_are_the_weights_rounded(backend: str, gradient_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1,), (3, 5), (100, 333), (8192,), (8193,)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    stock = [nn.Parameter(weight.double()) for weight in weights]
    optimiser = torch.optim.Adam(stock, lr=1e-2, betas=(0.5, 0.999))
    firsts, seconds = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    copies = [torch.empty(weight.shape if i % 2 else 0, dtype=torch.bfloat16) for i, weight in enumerate(weights)]
    steps = [torch.zeros(()) for _ in weights]
    for _ in range(5):
        gradients = [torch.randn(shape, generator=generator).to(gradient_dtype) for shape in shapes]
        for parameter, gradient in zip(stock, gradients, strict=True):
            parameter.grad = gradient.double()
        optimiser.step()
        adam(
            weights, gradients, firsts, seconds, copies, steps, learning_rate=1e-2, betas=(0.5, 0.999), backend=backend
        )
    assert [step.item() for step in steps] == [5] * len(weights)
    for weight, parameter, made in zip(weights, stock, copies, strict=True):
        torch.testing.assert_close(weight, parameter.detach().float(), atol=1e-6, rtol=1e-6)
        assert not made.numel() or torch.equal(made, weight.to(torch.bfloat16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam_corrects_each_weight_by_the_steps_that_it_has_done(backend: str) -> None:
    weights, gradients = [torch.zeros(3), torch.zeros(4)], [torch.ones(3), torch.ones(4)]
    moments = [[torch.ones(3), torch.zeros(4)] for _ in range(2)]
    copies, steps = [torch.empty(0, dtype=torch.bfloat16)] * 2, [torch.tensor(5000.0), torch.tensor(0.0)]
    adam(weights, gradients, *moments, copies, steps, learning_rate=1e-3, betas=(0.5, 0.999), backend=backend)
    assert [step.item() for step in steps] == [5001, 1]
    # A gradient that has always been 1 moves any weight by the learning rate.
    torch.testing.assert_close(torch.cat(weights), torch.full((7,), -1e-3), atol=0, rtol=1e-2)


def adam_arguments() -> dict[str, Any]:
    return {
        "weights": [torch.zeros(3, 4)],
        "gradients": [torch.ones(3, 4)],
        "first_moments": [torch.zeros(3, 4)],
        "second_moments": [torch.zeros(3, 4)],
        "copies": [torch.empty(0, dtype=torch.bfloat16)],
        "steps": [torch.zeros(())],
        "learning_rate": 1e-3,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": torch.tensor(1e-3)}, "learning rate in float64, got a torch.float32 tensor"),
        ({"learning_rate": torch.ones(2, dtype=torch.float64)}, r"learning_rate of shape \(\), got \(2,\)"),
        ({"learning_rate": torch.ones(0, dtype=torch.float64)}, r"learning_rate of shape \(\), got \(0,\)"),
        ({"learning_rate": torch.ones((), dtype=torch.float64, device="meta")}, "learning_rate on meta and works on"),
        ({"weights": [torch.zeros(3, 4, dtype=torch.float64)]}, "expected float32 weights"),
        ({"steps": [torch.zeros((), dtype=torch.int64)]}, "expected float32 weights, moments and steps"),
        ({"steps": [torch.zeros(0)]}, r"one step, got \(3, 4\), \(3, 4\) and 0"),
        ({"second_moments": [torch.zeros(2, 4)]}, r"moments \(3, 4\) as its weight and one step, got"),
        ({"steps": []}, "1 weights and lists of 1, 1, 1, 1, 0"),
        ({"gradients": [torch.ones(3, 3)]}, "expected 12 elements as in the weight, got a gradient of 9"),
        ({"copies": [torch.empty(5, dtype=torch.bfloat16)]}, "a copy of 5"),
        ({"gradients": [torch.ones(4, 3).t()]}, r"a gradient of strides \(1, 3\)"),
        ({"first_moments": [torch.zeros(4, 3).t()]}, r"moments of strides \(1, 3\) and \(4, 1\)"),
        ({"copies": [torch.zeros(4, 3).bfloat16().t()]}, r"a copy of strides \(1, 3\) do not lie as"),
        ({"copies": [torch.zeros(3, 4)]}, "copies in bfloat16, got torch.float32 and torch.float32"),
        ({"copies": [torch.zeros(3, 4, dtype=torch.uint8)]}, "copies in bfloat16, got torch.float32 and torch.uint8"),
        ({"gradients": [torch.ones(3, 4).double()]}, "expected gradients in float32, bfloat16 or float16"),
        ({"gradients": [torch.ones(3, 4, device="meta")]}, "adam got a gradient on meta and works on cpu"),
        ({"copies": [torch.ones(3, 4, device="meta").bfloat16()]}, "adam got a copy on meta and works on cpu"),
        (
            {name: [torch.zeros(3, 8)[:, ::2]] for name in ("weights", "gradients", "first_moments", "second_moments")},
            r"a weight of strides \(8, 2\) is neither contiguous nor",
        ),
    ],
)
def test_adam_names_what_it_cannot_walk_through(wrong: dict[str, Any], message: str) -> None:
    arguments = adam_arguments() | wrong
    with pytest.raises(UserError, match=message):
        adam(**arguments, betas=(0.5, 0.999))
    assert not arguments["weights"][0].any()


@pytest.mark.parametrize("copies", [True, False])
def test_the_refreshing_optimiser_moves_weights_in_any_memory_order_as_torchs(copies: bool) -> None:
    weight = nn.Parameter(torch.randn(6, 5, 4, 4).contiguous(memory_format=torch.channels_last))
    stock = nn.Parameter(weight.detach().clone())
    copy_of = {weight: torch.empty(6, 80, dtype=torch.bfloat16).requires_grad_()} if copies else {}
    mine = RefreshingAdam([weight], lr=1e-2, betas=(0.5, 0.999), copies=copy_of)
    theirs = torch.optim.Adam([stock], lr=1e-2, betas=(0.5, 0.999))
    for _ in range(3):
        gradient = torch.randn(6, 5, 4, 4).to(torch.bfloat16).float()
        stock.grad = gradient
        if copies:
            copy_of[weight].grad = gradient.permute(0, 2, 3, 1).flatten(1).to(torch.bfloat16)
        else:
            weight.grad = gradient  # contiguous: another order than the weight's
        assert len(mine.gradients()) == 1
        mine.step()
        theirs.step()
    torch.testing.assert_close(weight, stock, atol=1e-6, rtol=1e-6)
    if copies:
        assert torch.equal(copy_of[weight].detach(), weight.detach().permute(0, 2, 3, 1).flatten(1).to(torch.bfloat16))
    mine.zero_grad()
    assert mine.gradients() == []
