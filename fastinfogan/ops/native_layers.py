"""The C++ extension's layers under the arguments of their references: CPU only, and :mod:`.native` says how.

Products are torch's; the extension moves values to where the products want them, and does what is no product. Of the
two libraries that torch has for products in float32, ``torch.mm`` takes MKL, which gives processors that are not
Intel's no more than AVX2. oneDNN, whose kernels go by the instruction sets alone, is twice as fast where there are
wider ones, and in a large layer of few rows where there are none (bench/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from fastinfogan.ops.native import DTYPE_NUMBERS, available, floats

with suppress(ImportError):  # native.available() tells whether it is there
    import fastinfogan._C as _C

_ONEDNN_IN_FLOAT32 = (
    available()
    and torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and not _C.processor_is_intel()
)

# Patches made and used at a time, in bytes: they stay in the second-level caches of a few cores, and the products are
# still large enough to run at the full rate.
_PATCHES_AT_A_TIME = 4 << 20


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``a @ b`` of two matrices of one dtype, in ``out`` where one is given."""
    if not (_ONEDNN_IN_FLOAT32 and a.dtype == torch.float32 and a.numel() and b.numel()):
        return torch.mm(a, b, out=out)
    rows: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.t(), None, "none", [], "")
    return rows if out is None else out.copy_(rows)


def fc(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.fc`; CPU."""
    return _product(rows, matrix.t())


def fc_gradient(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.fc`; CPU."""
    return _product(_transposed(gradient), rows)


def _transposed(rows: torch.Tensor) -> torch.Tensor:
    """``[columns, rows]``: written out for 2-byte values, as their products want both factors as they are read."""
    if rows.element_size() != 2:
        return rows.t()
    rows = rows.contiguous()
    target = rows.new_empty(rows.shape[::-1])
    _C.transpose(*rows.shape, rows.data_ptr(), target.data_ptr(), torch.get_num_threads())
    return target


def convolve(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.convolve`; CPU."""
    n, _, height, width = images.shape
    small_height, small_width = height // stride, width // stride
    small = torch.empty((n, small_height, small_width, matrix.shape[0]), dtype=images.dtype)
    rows, transposed = small.view(-1, matrix.shape[0]), matrix.t()
    for first, end, patches in _patches(images, stride, before):
        _product(patches, transposed, rows[first:end])
    return small.permute(0, 3, 1, 2)


def convolve_transposed(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.convolve`; CPU."""
    n, channels, height, width = images.shape
    shape = (height * stride, width * stride, matrix.shape[1] // 16)
    large = torch.empty((n, *shape), dtype=images.dtype)
    rows, places = images.permute(0, 2, 3, 1).reshape(-1, channels), height * width
    chunk = _images_at_a_time(n, places * matrix.shape[1] * images.element_size())
    for first in range(0, n, chunk):
        end = min(n, first + chunk)
        patches = _product(rows[first * places : end * places], matrix)
        _C.fold(end - first, *shape, height, width, stride, before, DTYPE_NUMBERS[images.dtype], patches.data_ptr(),
                large[first].data_ptr(), torch.get_num_threads())  # fmt: skip
    return large.permute(0, 3, 1, 2)


def convolve_gradient(large: torch.Tensor, small: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.convolve`; CPU. Sums over chunks of images are taken in fp32."""
    rows = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
    narrow = 16 * large.shape[1] < small.shape[1]  # the first and the last layer: the patches are the smaller factor
    total: torch.Tensor | None = None
    for first, end, patches in _patches(large, stride, before):
        left, right = (patches, rows[first:end]) if narrow else (rows[first:end], patches)
        part = _product(_transposed(left), right)
        total = part if total is None else total.float().add_(part)
    if total is None:
        return small.new_zeros((small.shape[1], 16 * large.shape[1]))
    return (total.t() if narrow else total).to(small.dtype).contiguous()


def _patches(images: torch.Tensor, stride: int, before: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """``(first row, end, patches)`` of a few images at a time, in memory that is used again."""
    n, channels, height, width = images.shape
    small = height // stride, width // stride
    places = small[0] * small[1]
    source = images.permute(0, 2, 3, 1).contiguous()
    chunk = _images_at_a_time(n, places * 16 * channels * images.element_size())
    patches = torch.empty((chunk * places, 16 * channels), dtype=images.dtype)
    for first in range(0, n, chunk):
        end = min(n, first + chunk)
        part = patches[: (end - first) * places]
        _C.patches(end - first, height, width, channels, *small, stride, before, DTYPE_NUMBERS[images.dtype],
                   source[first].data_ptr(), part.data_ptr(), torch.get_num_threads())  # fmt: skip
        yield first * places, end * places, part


def _images_at_a_time(n: int, bytes_per_image: int) -> int:
    fit = max(1, _PATCHES_AT_A_TIME // max(1, bytes_per_image))
    return max(1, min(n, fit - fit % 32 if fit > 32 else fit))  # AMX takes 32 rows of a product at a time


def norm_act(
    x: torch.Tensor, bias: torch.Tensor, gain: torch.Tensor | None, slope: float, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the reference in :mod:`fastinfogan.ops.norm_act`; CPU."""
    x, bias = x.contiguous(), floats(bias)
    gain = None if gain is None else floats(gain)
    rows, columns = x.shape
    y = torch.empty_like(x)
    mean = torch.empty((groups, 0 if gain is None else columns), dtype=torch.float32)
    variance = torch.empty_like(mean)
    _C.norm_act(
        groups,
        rows // groups,
        columns,
        eps,
        slope,
        DTYPE_NUMBERS[x.dtype],
        x.data_ptr(),
        0 if gain is None else gain.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        torch.get_num_threads(),
    )
    return y, mean, variance


def norm_act_backward(
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
    """As the reference in :mod:`fastinfogan.ops.norm_act`; CPU."""
    x, bias, y_gradient = x.contiguous(), floats(bias), y_gradient.to(x.dtype).contiguous()
    gain = None if gain is None else floats(gain)
    rows, columns = x.shape
    x_gradient = torch.empty_like(x)
    # Results of an op share no storage.
    gain_gradient, bias_gradient = (torch.empty(columns, dtype=torch.float32) for _ in range(2))
    _C.norm_act_backward(
        groups,
        rows // groups,
        columns,
        eps,
        slope,
        DTYPE_NUMBERS[x.dtype],
        x.data_ptr(),
        0 if gain is None else gain.data_ptr(),
        bias.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        y_gradient.data_ptr(),
        x_gradient.data_ptr(),
        gain_gradient.data_ptr(),
        bias_gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return x_gradient, bias_gradient, gain_gradient if gain is not None else gain_gradient[:0]


def adam(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first_moments: Sequence[torch.Tensor],
    second_moments: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    learning_rate: torch.Tensor,
    *rates: float,
) -> None:
    """As the reference in :mod:`fastinfogan.ops.adam`; CPU."""
    _C.adam(
        [weight.numel() for weight in weights],
        [weight.data_ptr() for weight in weights],
        [gradient.data_ptr() for gradient in gradients],
        [DTYPE_NUMBERS[gradient.dtype] for gradient in gradients],
        [moment.data_ptr() for moment in first_moments],
        [moment.data_ptr() for moment in second_moments],
        [copy.data_ptr() if copy.numel() else 0 for copy in copies],
        [step.data_ptr() for step in steps],
        learning_rate.data_ptr(),
        *rates,
        torch.get_num_threads(),
    )
