"""The grid behind the paper's Figures 2 to 6: fixed rows of latents, with one code swept over given values.

The grid is built directly in the generator's packed form: repeating noise and codes first would write them twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import DTYPES, require
from fastinfogan.ops.backend import choose, cuda_kernel_takes, implementation
from fastinfogan.ops.pack_codes import _reference as _pack_reference
from fastinfogan.ops.pack_codes import check_categories, require_codes


def traversal(
    spec: LatentSpec,
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    *,
    code: int,
    values: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> torch.Tensor:
    """``z [rows * columns, spec.dim]``: row ``i * columns + j`` is latent row i with value j in place of one code.

    Args:
        noise: ``[rows, spec.noise]``; ``categories``: ``int64 [rows, n_categorical]``; ``continuous``:
            ``[rows, n_continuous]``: what stays fixed along each row of the grid.
        code: the code that is swept, its number in ``spec.names`` from 0.
        values: ``[columns]``: category indices or continuous values.

    Not differentiable: figures only look.

    Raises:
        UserError: a shape that does not fit ``spec``, a dtype or a device that does not fit, no such code, or a
            category outside 0 .. K-1.
    """
    n_categorical = len(spec.categorical)
    require_codes("traversal", spec, noise, categories, continuous)
    require("traversal", "values", values, (values.numel(),), noise.device, "any")
    if not 0 <= code < len(spec.names):
        raise UserError(f"traversal expected the number of a code, 0 to {len(spec.names) - 1}, got {code}")
    if dtype not in DTYPES:
        raise UserError(f"latents can be float32, bfloat16 or float16, not {dtype}")
    check_categories(spec, categories)
    if code < n_categorical and not torch.compiler.is_compiling():
        k = spec.categorical[code]
        wrong = (~((values >= 0) & (values < k))).nonzero()  # NaN is wrong too
        if len(wrong):
            raise UserError(f"{spec.names[code]} has values 0 to {k - 1}, got {values[wrong[0, 0]].item():g}")
    chosen = choose(backend, noise.device.type, native_on_cuda=cuda_kernel_takes(spec.categorical), triton=False)
    return torch.ops.fastinfogan.traversal(noise, categories, continuous, code, values, spec.categorical, dtype, chosen)


def _reference(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    code: int,
    values: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    columns = len(values)
    noise, categories, continuous = (fixed.repeat_interleave(columns, 0) for fixed in (noise, categories, continuous))
    swept = values.repeat(noise.shape[0] // max(columns, 1))
    if code < len(categorical):
        categories[:, code] = swept.to(torch.int64)
    else:
        # Through fp32 to the latents' dtype, whatever the dtype of the fixed rows.
        continuous = continuous.to(dtype)
        continuous[:, code - len(categorical)] = swept.float().to(dtype)
    return _pack_reference(noise, categories, continuous, categorical, dtype)


@torch.library.custom_op("fastinfogan::traversal", mutates_args=())
def _traversal(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    code: int,
    values: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    run = implementation("traversal", backend, _reference)
    return run(noise, categories, continuous, code, values, categorical, dtype)


@_traversal.register_fake
def _(noise, categories, continuous, code, values, categorical, dtype, backend):  # type: ignore[no-untyped-def]
    dim = noise.shape[1] + sum(categorical) + continuous.shape[1]
    return noise.new_empty((noise.shape[0] * values.shape[0], dim), dtype=dtype)
