"""Batch norm and the activation behind it in one op, with statistics per group of rows; or bias and activation.

Groups are for D: real, generated and warped images go through a layer's matrix product together, which reads the
weights once, and are normalised apart, as Algorithm 1 has them. On a CPU norm and activation as separate ops cost more
than the products between them; a GPU has cuDNN and graph capture, so there is no Triton kernel.
"""

from __future__ import annotations

import torch

from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import require
from fastinfogan.ops.backend import below_autograd, choose, first_order, implementation, register_op


def norm_act(
    x: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor | None = None,
    *,
    slope: float,
    groups: int = 1,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(y, mean, variance)``: y = act(gain * (x - mean) / sqrt(variance + eps) + bias); without gain act(x + bias).

    Args:
        x: ``[groups * n, columns]``, float64, float32, bfloat16 or float16; group after group.
        bias, gain: ``[columns]`` float32 (float64 for float64 x).
        slope: of act below 0: 0 is ReLU, 0.1 the paper's leaky ReLU, 1 no activation.

    ``mean`` and the biased ``variance`` are ``[groups, columns]`` in float32, for running statistics, and carry no
    gradient; without gain they are empty. Source: Ioffe and Szegedy 2015, Algorithm 1.

    Raises:
        UserError: shapes or devices that do not fit, or a group of fewer than two rows to normalise.
    """
    columns = bias.numel()
    for name, vector in (("bias", bias), ("gain", gain)):
        if vector is not None:
            require("norm_act", name, vector, (columns,), x.device)
    if x.dim() != 2 or x.shape[1] != columns or groups < 1 or x.shape[0] % groups:
        raise UserError(
            f"norm_act expected x of shape [groups * n, {columns}] for {groups} groups, got {tuple(x.shape)}"
        )
    if gain is not None and x.shape[0] < 2 * groups:
        raise UserError(
            f"batch norm needs at least 2 rows in each of {groups} groups, got {x.shape[0]} in all: choose a larger "
            f"--batch"
        )
    with below_autograd(x, bias, *(() if gain is None else (gain,))):
        y, mean, variance = _norm_act(
            x, bias, gain, slope, groups, eps,
            choose(backend, x.device.type, fused=x.dtype != torch.float64, triton=False),
        )  # fmt: skip
    return y, mean, variance


def _normalised(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x - mean) / std as ``[groups, n, columns]``, and 1 / std ``[groups, 1, columns]``."""
    inverse_std = torch.rsqrt(variance + eps)[:, None]
    return (x.unflatten(0, (groups, -1)) - mean[:, None]) * inverse_std, inverse_std


def _reference(
    x: torch.Tensor, bias: torch.Tensor, gain: torch.Tensor | None, slope: float, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = x.to(bias.dtype)
    if gain is None:
        mean, variance = bias.new_empty((groups, 0)), bias.new_empty((groups, 0))
        z = values + bias
    else:
        grouped = values.unflatten(0, (groups, -1))
        mean, variance = grouped.mean(1), grouped.var(1, correction=0)
        z = (_normalised(values, mean, variance, groups, eps)[0] * gain + bias).flatten(0, 1)
    return torch.where(z > 0, z, slope * z).to(x.dtype).contiguous(), mean, variance


def _backward_reference(
    y_gradient: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    slope: float,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # 1. Through the activation: dz = dy where z > 0, else slope dy.
    values, above = x.to(bias.dtype), y_gradient.to(bias.dtype)
    if gain is None:
        dz = torch.where(values + bias > 0, above, slope * above)
        return dz.to(x.dtype).contiguous(), dz.sum(0), bias.new_empty(0)
    h, inverse_std = _normalised(values, mean, variance, groups, eps)
    above = above.unflatten(0, (groups, -1))
    dz = torch.where(h * gain + bias > 0, above, slope * above)
    # 2. Through gain and bias, and through the mean and the variance that all rows of the group share.
    dx = gain * inverse_std * (dz - dz.mean(1, keepdim=True) - h * (dz * h).mean(1, keepdim=True))
    return dx.flatten(0, 1).to(x.dtype).contiguous(), dz.sum((0, 1)), (dz * h).sum((0, 1))


@register_op
def _norm_act(
    x: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor | None,
    slope: float,
    groups: int,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    run = implementation("norm_act", backend, _reference, native="native_layers")
    return run(x, bias, gain, slope, groups, eps)


@register_op
def _norm_act_backward(
    y_gradient: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    slope: float,
    groups: int,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    run = implementation("norm_act_backward", backend, _backward_reference, native="native_layers")
    return run(y_gradient, x, bias, gain, mean, variance, slope, groups, eps)


@torch.library.register_fake("fastinfogan::norm_act")
def _(x, bias, gain, slope, groups, eps, backend):  # type: ignore[no-untyped-def]
    columns = 0 if gain is None else len(bias)
    return x.new_empty(x.shape), bias.new_empty((groups, columns)), bias.new_empty((groups, columns))


@torch.library.register_fake("fastinfogan::norm_act_backward")
def _(y_gradient, x, bias, gain, mean, variance, slope, groups, eps, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), bias.new_empty(bias.shape), bias.new_empty(0 if gain is None else gain.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, bias, gain, *ctx.rest = inputs
    ctx.has_gain = gain is not None
    ctx.save_for_backward(x, bias, *([gain] if ctx.has_gain else []), *output[1:])
    ctx.mark_non_differentiable(*output[1:])


@first_order
def _backward(ctx, y_gradient, *_):  # type: ignore[no-untyped-def]
    x, bias, *gain, mean, variance = ctx.saved_tensors
    dx, dbias, dgain = torch.ops.fastinfogan.norm_act_backward(
        y_gradient, x, bias, gain[0] if gain else None, mean, variance, *ctx.rest
    )
    return dx, dbias, dgain if ctx.has_gain else None, None, None, None, None


torch.library.register_autograd("fastinfogan::norm_act", _backward, setup_context=_setup_context)
