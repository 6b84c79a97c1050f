"""Adam: PyTorch's fused one on a GPU, and on a CPU one that also refreshes the bfloat16 copies of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fastinfogan.ops.adam import adam


class Adam(torch.optim.Adam):
    """PyTorch's, with the gradients at hand that its next step will use."""

    def gradients(self) -> list[torch.Tensor]:
        """To be averaged in place where several processes train."""
        leaves = [self._leaf(weight) for group in self.param_groups for weight in group["params"]]
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    def _leaf(self, weight: nn.Parameter) -> torch.Tensor:
        """Where the gradient of ``weight`` is collected."""
        return weight


def adam_for(
    parameters: list[nn.Parameter],
    device: torch.device,
    *,
    lr: float | torch.Tensor,
    betas: tuple[float, float],
    copies: Mapping[nn.Parameter, torch.Tensor] | None,
) -> Adam:
    """The fastest Adam on ``device``: a :class:`RefreshingAdam` where there are ``copies``, else PyTorch's fused one.

    ``lr`` as a scalar on ``device``, of the dtype :func:`rate_dtype`, is read at every step.
    """
    if copies is not None:
        return RefreshingAdam(parameters, lr=lr, betas=betas, copies=copies)
    optimiser = Adam(parameters, lr=lr, betas=betas, fused=True, capturable=device.type == "cuda")
    # The iterations that warm a capture up are eager, and torch would advise against capturable for their sake.
    optimiser._warned_capturable_if_run_uncaptured = True
    return optimiser


def rate_dtype(device: torch.device) -> torch.dtype:
    """The dtype that a learning-rate tensor must have on ``device``."""
    return torch.float64 if device.type == "cpu" else torch.float32


class RefreshingAdam(Adam):
    """Adam whose step is one op over all weights; the networks compute with ``copies`` of some of them.

    copies: the bfloat16 matrix of a weight, a leaf that collects the gradient in the weight's place and is written in
    the same pass. State and its names are those of ``torch.optim.Adam``, so checkpoints fit either.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        lr: float | torch.Tensor,
        betas: tuple[float, float],
        copies: Mapping[nn.Parameter, torch.Tensor],
    ) -> None:
        super().__init__(parameters, lr=torch.as_tensor(lr, dtype=torch.float64), betas=betas)
        self.copies = {parameter: copies[parameter] for parameter in parameters if parameter in copies}
        self.no_copy = torch.empty(0, dtype=torch.bfloat16)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for copy in self.copies.values():
            copy.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on whatever has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if self._leaf(weight).grad is not None]
            if not weights:
                continue
            states = [self._state(weight) for weight in weights]
            adam(
                weights,
                [_in_order_of(self._leaf(weight)) for weight in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [self.copies.get(weight, self.no_copy) for weight in weights],
                [state["step"] for state in states],
                learning_rate=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
            )

    def _leaf(self, weight: nn.Parameter) -> torch.Tensor:
        return self.copies.get(weight, weight)

    def _state(self, weight: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state


def _in_order_of(leaf: torch.Tensor) -> torch.Tensor:
    """The gradient of ``leaf`` with its elements in memory as the leaf's: the op walks both side by side."""
    gradient = leaf.grad
    assert gradient is not None
    if gradient.stride() == leaf.stride():
        return gradient
    return torch.empty_like(leaf, dtype=gradient.dtype).copy_(gradient)
