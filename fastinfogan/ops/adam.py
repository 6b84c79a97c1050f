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

from fastinfogan.ops.backend import Backend, choose, implementation


def adam(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first_moments: Sequence[torch.Tensor],
    second_moments: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor],
    step: torch.Tensor,
    *,
    learning_rate: float | torch.Tensor,
    betas: tuple[float, float],
    eps: float = 1e-8,
    backend: str | None = None,
) -> None:
    """One step of Adam (Kingma and Ba 2015, Algorithm 1), in place, on contiguous tensors of the same elements' order.

    Args:
        weights, first_moments, second_moments: float32.
        gradients: float32, bfloat16 or float16, as many elements each as its weight.
        copies: bfloat16, the weight rounded; empty for a weight without one.
        step: float32 scalar, the steps done; counted up.
        learning_rate: as a float64 scalar it is read when the step is done: a recorded step can follow a schedule.
    """
    rate = learning_rate
    if not isinstance(rate, torch.Tensor):
        rate = torch.tensor(rate, dtype=torch.float64, device=step.device)
    torch.ops.fastinfogan.adam(
        weights, gradients, first_moments, second_moments, copies, step, rate, *betas, eps,
        choose(backend, step.device.type, triton=False),
    )  # fmt: skip


def _reference(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first_moments: Sequence[torch.Tensor],
    second_moments: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor],
    step: torch.Tensor,
    learning_rate: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    step += 1
    correction1, correction2 = 1 - beta1 ** step.double(), 1 - beta2 ** step.double()
    for weight, gradient, m, v, copy in zip(weights, gradients, first_moments, second_moments, copies, strict=True):
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
    "Tensor(d!)[] copies, Tensor(e!) step, Tensor learning_rate, float beta1, float beta2, float eps, "
    "str backend) -> ()"
)
_LIBRARY.impl("adam", lambda *arguments: _adam(*arguments[:-1], backend=arguments[-1]), "CompositeExplicitAutograd")
torch.library.register_fake("fastinfogan::adam", lambda *arguments: None, lib=_LIBRARY)
