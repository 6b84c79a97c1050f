"""Fully connected layers without bias, as the CPU's layers compute them: the library's products, but for two cases.

The gradient of weights of 2 bytes takes half of the library's time, and every product of float32 on a processor that is
not Intel's (:mod:`fastinfogan.ops.native_layers` says why).
"""

from __future__ import annotations

from typing import cast

import torch

from fastinfogan.errors import UserError
from fastinfogan.ops.backend import below_autograd, choose, first_order, implementation, register_op


def fc(rows: torch.Tensor, matrix: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """``[n, out]``: ``rows`` ``[n, in]`` times the weights ``matrix`` ``[out, in]``, both of one floating dtype.

    Raises:
        UserError: shapes that do not fit.
    """
    if rows.dim() != 2 or matrix.dim() != 2 or rows.shape[1] != matrix.shape[1]:
        raise UserError(
            f"fc expected rows [n, in] and weights [out, in], got {tuple(rows.shape)}, {tuple(matrix.shape)}"
        )
    chosen = choose(backend, rows.device.type, fused=rows.dtype != torch.float64, triton=False)
    with below_autograd(rows, matrix):
        products: torch.Tensor = _fc(rows, matrix, chosen)
        return products


def _reference(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return rows @ matrix.t()


def _gradient_reference(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return gradient.t() @ rows


@register_op
def _fc(rows: torch.Tensor, matrix: torch.Tensor, backend: str) -> torch.Tensor:
    run = implementation("fc", backend, _reference, native="native_layers")
    return cast(torch.Tensor, run(rows, matrix))


@register_op
def _fc_gradient(gradient: torch.Tensor, rows: torch.Tensor, backend: str) -> torch.Tensor:
    """d / d matrix, ``[out, in]``, of the products whose gradient ``[n, out]`` is given."""
    run = implementation("fc_gradient", backend, _gradient_reference, native="native_layers")
    return cast(torch.Tensor, run(gradient, rows))


@torch.library.register_fake("fastinfogan::fc")
def _(rows, matrix, backend):  # type: ignore[no-untyped-def]
    return rows.new_empty((len(rows), len(matrix)))


@torch.library.register_fake("fastinfogan::fc_gradient")
def _(gradient, rows, backend):  # type: ignore[no-untyped-def]
    return rows.new_empty((gradient.shape[1], rows.shape[1]))


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    rows, matrix, ctx.backend = inputs
    ctx.save_for_backward(rows, matrix)


@first_order
def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    rows, matrix = ctx.saved_tensors
    for_rows, for_matrix = ctx.needs_input_grad[:2]
    return (
        torch.ops.fastinfogan.fc(gradient, matrix.t(), ctx.backend) if for_rows else None,
        torch.ops.fastinfogan.fc_gradient(gradient, rows, ctx.backend) if for_matrix else None,
        None,
    )


torch.library.register_autograd("fastinfogan::fc", _backward, setup_context=_context)
