"""Codes to the generator's input and back: how values that were chosen, and not drawn, become columns.

Traversals, interpolation and any code set by hand are built as (noise, categories, continuous) and packed here. Beside
this only what draws latents writes one-hots: :mod:`fastinfogan.ops.sample_latents`, and a prior that is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import DTYPES, require
from fastinfogan.ops.backend import choose, cuda_kernel_takes, implementation, register_op


def pack_codes(
    spec: LatentSpec,
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """``[noise | one-hots | continuous]``: ``[n, spec.dim]`` in ``dtype``.

    Args:
        noise: ``[n, spec.noise]``; ``categories``: ``int64 [n, n_categorical]``; ``continuous``: ``[n, n_continuous]``.

    Raises:
        UserError: a shape that does not fit ``spec``, a dtype or a device that does not fit, or a category outside
            0 .. K-1, named with its row.
    """
    require_codes("pack_codes", spec, noise, categories, continuous)
    fused = {noise.dtype, continuous.dtype, dtype} <= set(DTYPES)
    chosen = choose(backend, noise.device.type, native_on_cuda=cuda_kernel_takes(spec.categorical), fused=fused)
    if chosen != "native" or noise.is_cuda:
        check_categories(spec, categories)
    try:
        return cast(torch.Tensor, _pack_codes(noise, categories, continuous, spec.categorical, dtype, chosen))
    except IndexError:  # the extension finds a category out of range while it packs
        check_categories(spec, categories)
        raise


def require_codes(
    op: str, spec: LatentSpec, noise: torch.Tensor, categories: torch.Tensor, continuous: torch.Tensor
) -> None:
    """Raise a UserError unless the three are rows of latents of ``spec`` on one device."""
    rows, device = len(noise), noise.device
    require(op, "noise", noise, (rows, spec.noise), device)
    require(op, "categories", categories, (rows, len(spec.categorical)), device, "index")
    require(op, "continuous", continuous, (rows, len(spec.continuous)), device)


def check_categories(spec: LatentSpec, categories: torch.Tensor) -> None:
    """Raise a UserError that names the first row whose category is outside 0 .. K-1.

    Waits for the device, so a traced function, which cannot, is not checked.
    """
    if torch.compiler.is_compiling():
        return
    sizes = torch.tensor(spec.categorical, dtype=categories.dtype, device=categories.device)
    wrong = ((categories < 0) | (categories >= sizes)).nonzero()
    if len(wrong):
        row, code = wrong[0].tolist()
        raise UserError(
            f"row {row} asks for category {int(categories[row, code])} of {spec.names[code]}, "
            f"which has 0 to {spec.categorical[code] - 1}"
        )


def unpack_codes(
    spec: LatentSpec, z: torch.Tensor, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of :func:`pack_codes`: ``(noise, categories int64, continuous)`` of ``z`` ``[n, spec.dim]``.

    A category is the largest of its columns, the lowest of equals; noise and continuous are views of ``z``.

    Raises:
        UserError: ``z`` has another number of columns than ``spec``, or an unknown backend.
    """
    if z.dim() != 2 or z.shape[1] != spec.dim:
        raise UserError(f"unpack_codes expected z of shape (n, {spec.dim}), got {tuple(z.shape)}")
    chosen = choose(backend, z.device.type, native_on_cuda=cuda_kernel_takes(spec.categorical), fused=z.dtype in DTYPES)
    categories = torch.ops.fastinfogan.unpack_codes(z, spec.noise, spec.categorical, chosen)
    return z[:, : spec.noise], categories, z[:, spec.continuous_columns]


def _reference(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    one_hots = [torch.nn.functional.one_hot(categories[:, i], k).to(dtype) for i, k in enumerate(categorical)]
    return torch.cat([noise.to(dtype), *one_hots, continuous.to(dtype)], dim=1)


@register_op
def _pack_codes(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    run = implementation("pack_codes", backend, _reference)
    return run(noise, categories, continuous, categorical, dtype)


@torch.library.register_fake("fastinfogan::pack_codes")
def _(noise, categories, continuous, categorical, dtype, backend):  # type: ignore[no-untyped-def]
    return noise.new_empty((noise.shape[0], noise.shape[1] + sum(categorical) + continuous.shape[1]), dtype=dtype)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    noise, _, continuous, *_ = inputs
    ctx.columns = (noise.shape[1], continuous.shape[1])
    ctx.dtypes = (noise.dtype, continuous.dtype)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    n_noise, n_continuous = ctx.columns
    return (
        grad[:, :n_noise].to(ctx.dtypes[0]),
        None,
        grad[:, grad.shape[1] - n_continuous :].to(ctx.dtypes[1]),
        *[None] * 3,
    )


torch.library.register_autograd("fastinfogan::pack_codes", _backward, setup_context=_setup_context)


def _unpack_reference(z: torch.Tensor, noise: int, categorical: Sequence[int]) -> torch.Tensor:
    one_hots = z[:, noise : noise + sum(categorical)].split(list(categorical), dim=1) if categorical else ()
    categories = [one_hot.argmax(1) for one_hot in one_hots]
    return torch.stack(categories, 1) if categories else z.new_empty((len(z), 0), dtype=torch.int64)


@torch.library.custom_op("fastinfogan::unpack_codes", mutates_args=())
def _unpack_codes(z: torch.Tensor, noise: int, categorical: Sequence[int], backend: str) -> torch.Tensor:
    run = implementation("unpack_codes", backend, _unpack_reference)
    return cast(torch.Tensor, run(z, noise, categorical))


@_unpack_codes.register_fake
def _(z, noise, categorical, backend):  # type: ignore[no-untyped-def]
    return z.new_empty((z.shape[0], len(categorical)), dtype=torch.int64)
