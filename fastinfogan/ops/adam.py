"""Adam over all weights of a phase in one pass, which also refreshes their bfloat16 copies.

Under autocast a weight is cast to bfloat16 in every forward pass, and its gradient back to float32: on MNIST's two
6272 x 1024 matrices that costs more than the matrix products. Here the networks compute with copies that this op writes
while it holds the updated weight, and it reads the gradients as they were computed. The CPU alone uses it; on a GPU
PyTorch's fused Adam does the same within a captured graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import DTYPES, require, require_on
from fastinfogan.ops.backend import Backend, choose, implementation


def adam(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first_moments: Sequence[torch.Tensor],
    second_moments: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    *,
    learning_rate: float | torch.Tensor,
    betas: tuple[float, float],
    eps: float = 1e-8,
    backend: str | None = None,
) -> None:
    """One step of Adam (Kingma and Ba 2015, Algorithm 1), in place, on dense tensors of the same elements' order.

    Args:
        weights, first_moments, second_moments: float32.
        gradients: float32, bfloat16 or float16, as many elements each as its weight.
        copies: bfloat16, the weight rounded; empty for a weight without one.
        steps: float32 scalars, the steps that each weight has done, which correct its moments' bias; counted up.
        learning_rate: as a float64 scalar it is read when the step is done: a recorded step can follow a schedule.

    Raises:
        UserError: another dtype or device, another number of elements, or an order in memory that is not the weight's.
    """
    device = weights[0].device if weights else torch.device("cpu")
    rate = learning_rate
    if not isinstance(rate, torch.Tensor):
        rate = torch.tensor(rate, dtype=torch.float64, device=device)
    lists = (weights, gradients, first_moments, second_moments, copies, steps)
    require("adam", "learning_rate", rate, (), device)
    _check(lists, rate)
    torch.ops.fastinfogan.adam(*lists, rate, *betas, eps, choose(backend, device.type, triton=False))


def _check(lists: tuple[Sequence[torch.Tensor], ...], rate: torch.Tensor) -> None:
    """Of each weight: itself, gradient, moments, copy and steps."""
    if rate.dtype != torch.float64:
        raise UserError(
            f"adam reads its learning rate in float64, got a {rate.dtype} tensor: give a float or .double()"
        )
    if len(set(map(len, lists))) > 1:
        raise UserError(
            f"adam has {len(lists[0])} weights and lists of {', '.join(str(len(one)) for one in lists[1:])}"
        )
    for weight, gradient, first, second, copy, step in zip(*lists, strict=True):
        if not weight.dtype == first.dtype == second.dtype == step.dtype == torch.float32:
            raise UserError(
                f"adam expected float32 weights, moments and steps, got {weight.dtype}, {first.dtype}, "
                f"{second.dtype} and {step.dtype}"
            )
        if gradient.dtype not in DTYPES or (copy.numel() and copy.dtype != torch.bfloat16):
            raise UserError(
                f"adam expected gradients in float32, bfloat16 or float16 and copies in bfloat16, got {gradient.dtype} "
                f"and {copy.dtype}"
            )
        device = weight.device
        # Every step comes by here: compared at once, and looked at one by one where one of them is elsewhere.
        if not device == gradient.device == first.device == second.device == step.device or copy.device != device:
            for name, other in (("gradient", gradient), ("moment", first), ("moment", second), ("step", step)):
                require_on("adam", f"a {name}", other, device)
            if copy.numel():
                require_on("adam", "a copy", copy, device)
        if gradient.numel() != weight.numel() or (copy.numel() and copy.numel() != weight.numel()):
            raise UserError(
                f"adam expected {weight.numel()} elements as in the weight, got a gradient of "
                f"{gradient.numel()} and a copy of {copy.numel()}"
            )
        if first.shape != weight.shape or second.shape != weight.shape or step.numel() != 1:
            raise UserError(
                f"adam expected moments {tuple(weight.shape)} as its weight and one step, got {tuple(first.shape)}, "
                f"{tuple(second.shape)} and {step.numel()}"
            )
        if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
            raise UserError(
                f"adam walks through memory: a weight of strides {weight.stride()} is neither contiguous nor "
                f"channels-last, use .contiguous()"
            )
        alike = first.stride() == second.stride() == weight.stride() and _lies_as(gradient, weight)
        if not alike or (copy.numel() and not _lies_as(copy, weight)):
            raise UserError(
                f"adam walks through memory: a gradient of strides {gradient.stride()}, moments of strides "
                f"{first.stride()} and {second.stride()} and a copy of strides {copy.stride()} do not lie as their "
                f"weight of strides {weight.stride()} does"
            )


def _lies_as(other: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether both have their elements in one order; a matrix in its own order is taken for the weight's."""
    return other.stride() == weight.stride() if other.shape == weight.shape else other.is_contiguous()


def _reference(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first_moments: Sequence[torch.Tensor],
    second_moments: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    learning_rate: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    for weight, gradient, m, v, copy, step in zip(
        weights, gradients, first_moments, second_moments, copies, steps, strict=True
    ):
        step += 1
        correction1, correction2 = 1 - beta1 ** step.double(), 1 - beta2 ** step.double()
        g = gradient.float().view(weight.shape)
        m += (1 - beta1) * (g - m)
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        weight -= (learning_rate / correction1).float() * m / (v.sqrt() / correction2.sqrt().float() + eps)
        if copy.numel():
            copy.copy_(weight.view(copy.shape))


def _adam(*arguments, backend):  # type: ignore[no-untyped-def]
    implementation("adam", cast(Backend, backend), _reference, native="native_layers")(*arguments)


_LIBRARY = torch.library.Library("fastinfogan", "FRAGMENT")
_LIBRARY.define(
    "adam(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] first_moments, Tensor(c!)[] second_moments, "
    "Tensor(d!)[] copies, Tensor(e!)[] steps, Tensor learning_rate, float beta1, float beta2, float eps, "
    "str backend) -> ()"
)
_LIBRARY.impl("adam", lambda *arguments: _adam(*arguments[:-1], backend=arguments[-1]), "CompositeExplicitAutograd")
torch.library.register_fake("fastinfogan::adam", lambda *arguments: None, lib=_LIBRARY)
