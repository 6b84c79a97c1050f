"""The weights of an autocast region cast together, in one launch, and their gradients back in another.

Autocast casts each weight where it is used, and each gradient where it arrives: a fifth of the launches of an iteration
on a GPU, which moves next to nothing in each. The values are autocast's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import is_parametrized

from fastinfogan.networks import Block
from fastinfogan.precision import Precision


@contextmanager
def autocast(precision: Precision, *modules: nn.Module) -> Iterator[None]:
    """``precision.autocast()``, within which the blocks of ``modules`` have their weights in its dtype already.

    Blocks with an engine or a parametrization are left to autocast: the one has copies of its own, and of the other the
    weight is not there yet. So is what is compiled, as a compiler fuses casts with what follows them.
    """
    with precision.autocast():
        if precision.dtype == torch.float32:
            yield
            return
        blocks = [
            block
            for module in modules
            if module._compiled_call_impl is None
            for block in module.modules()
            if isinstance(block, Block) and block.engine is None and not is_parametrized(block.linear)
        ]
        with _weights_in(precision.dtype, blocks):
            yield


@contextmanager
def _weights_in(dtype: torch.dtype, blocks: list[Block]) -> Iterator[None]:
    weights = [weight for block in blocks for weight in block.linear.parameters(recurse=False)]
    cast: dict[torch.Tensor, torch.Tensor] = {}
    # Apart, or a weight that is passed through would be asked for a gradient beside one that learns.
    for learns in (True, False):
        if some := [weight for weight in weights if weight.requires_grad is learns]:
            cast.update(zip(some, _Cast.apply(dtype, *some), strict=True))
    for block in blocks:
        weight, bias = block.linear.weight, block.linear.bias
        block.weights = cast[weight], None if bias is None else cast[bias]
    try:
        yield
    finally:
        for block in blocks:
            block.weights = None


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_copied(weights, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        arrived = iter(_copied([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(arrived) for gradient in gradients)


def _copied(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return copies
