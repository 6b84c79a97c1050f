"""The C++/CUDA extension ``fastinfogan._C`` under the arguments of each op's reference.

The extension knows no torch: this file allocates the outputs and hands over addresses, strides and the number of
threads. A call costs a few microseconds before it computes, so what depends on the codes alone is built once.
Shapes and devices have been checked by the op.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch  # before _C, so that both use the OpenMP runtime that torch brings

from fastinfogan.ops.philox import FLIPS

why_not: str | None = None
try:
    import fastinfogan._C as _C
except ImportError as _error:
    why_not = f"the C++ extension is not built ({_error}): pip install -e . with a C++17 compiler builds it"

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ABSENT = (0, -1, 0, 0)  # address, dtype, rows, stride
DTYPES = tuple(_CODES)


def available() -> bool:
    """Whether the extension is there; :data:`why_not` says what is missing otherwise."""
    return why_not is None


def keep_freed_memory() -> None:
    """Let the process reuse the host memory that it frees instead of returning it to the system; for good."""
    _C.keep_freed_memory()


def on_cuda() -> bool:
    """Whether the extension serves ``pack_codes``, ``unpack_codes``, ``traversal`` and ``recognize`` on CUDA."""
    return why_not is None and bool(_C.built_with_cuda)


@lru_cache
def _layout(
    categorical: tuple[int, ...],
    continuous_normal: tuple[bool, ...],
    noise: int = 0,
    noise_normal: bool = False,
    entropies: tuple[float, ...] = (),
) -> _C.Layout:
    return _C.Layout(noise, noise_normal, list(categorical), list(continuous_normal), list(entropies))


@lru_cache
def _head_layout(categorical: tuple[int, ...], entropies: tuple[float, ...]) -> _C.Layout:
    return _layout(categorical, (False,) * (len(entropies) - len(categorical)), entropies=entropies)


def _rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A matrix whose columns are neighbours, and its row stride; any row stride will do."""
    if tensor.stride(1) != 1:
        tensor = tensor.contiguous()
    return tensor, tensor.stride(0)


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.to(torch.float32).contiguous()


def _queue(tensor: torch.Tensor) -> tuple[int, int]:
    """The device's number and current stream; the CPU is device -1."""
    if tensor.is_cuda:
        return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
    return -1, 0


def sample_latents(
    seed: torch.Tensor,
    step: torch.Tensor,
    batch: int,
    noise: int,
    noise_normal: bool,
    categorical: Sequence[int],
    continuous_normal: Sequence[bool],
    stream: int,
    row_offset: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the reference in :mod:`fastinfogan.ops.sample_latents`; CPU."""
    categorical, continuous_normal = tuple(categorical), tuple(continuous_normal)
    layout = _layout(categorical, continuous_normal, noise, noise_normal)
    z = torch.empty((batch, noise + sum(categorical) + len(continuous_normal)), dtype=dtype)
    categories = torch.empty((batch, len(categorical)), dtype=torch.int64)
    continuous = torch.empty((batch, len(continuous_normal)))
    _C.sample_latents(
        layout,
        seed.data_ptr(),
        step.data_ptr(),
        stream,
        row_offset,
        batch,
        _CODES[dtype],
        z.data_ptr(),
        categories.data_ptr(),
        continuous.data_ptr(),
        torch.get_num_threads(),
    )
    return z, categories, continuous


def head_loss(
    fake_logits: torch.Tensor,
    real_logits: torch.Tensor | None,
    recognition: torch.Tensor | None,
    categories: torch.Tensor | None,
    continuous: torch.Tensor | None,
    code_weights: torch.Tensor | None,
    loss_scale: torch.Tensor | None,
    categorical: Sequence[int],
    entropies: Sequence[float],
    saturating: bool,
    fixed_std: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the reference in :mod:`fastinfogan.ops.head_loss`, for fp32, bf16 and fp16; CPU.

    Raises:
        IndexError: a category outside 0 .. K-1, named with its row.
    """
    rows = fake_logits.shape[0]
    fake_gradient = torch.empty(rows, dtype=fake_logits.dtype)
    real, real_gradient = _ABSENT, None
    if real_logits is not None:
        real_rows = real_logits.shape[0]
        real_gradient = torch.empty(real_rows, dtype=real_logits.dtype)
        real = (real_logits.data_ptr(), _CODES[real_logits.dtype], real_rows, real_logits.stride(0))
    q_gradient = None
    if recognition is None:
        layout, n_codes = _head_layout((), ()), 0
        recognition_address, recognition_dtype, recognition_stride = 0, -1, 0
        categories_address = continuous_address = weights_address = 0
    else:
        assert categories is not None and continuous is not None
        layout, n_codes = _head_layout(tuple(categorical), tuple(entropies)), len(entropies)
        recognition, recognition_stride = _rows(recognition)
        recognition_address, recognition_dtype = recognition.data_ptr(), _CODES[recognition.dtype]
        q_gradient = torch.empty(recognition.shape, dtype=recognition.dtype)
        categories, continuous = categories.contiguous(), _floats(continuous)
        categories_address, continuous_address = categories.data_ptr(), continuous.data_ptr()
        code_weights = None if code_weights is None else _floats(code_weights)
        weights_address = 0 if code_weights is None else code_weights.data_ptr()
    statistics = torch.empty(3 + 2 * n_codes)
    loss_scale = None if loss_scale is None else _floats(loss_scale)
    _C.head_loss(
        layout,
        fake_logits.data_ptr(),
        _CODES[fake_logits.dtype],
        rows,
        fake_logits.stride(0),
        *real,
        recognition_address,
        recognition_dtype,
        recognition_stride,
        categories_address,
        continuous_address,
        weights_address,
        0 if loss_scale is None else loss_scale.data_ptr(),
        saturating,
        fixed_std,
        statistics.data_ptr(),
        0 if real_gradient is None else real_gradient.data_ptr(),
        fake_gradient.data_ptr(),
        0 if q_gradient is None else q_gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return (
        statistics,
        fake_logits.new_empty(0) if real_gradient is None else real_gradient,
        fake_gradient,
        fake_logits.new_empty(0) if q_gradient is None else q_gradient,
    )


def image_batch(
    images_u8: torch.Tensor,
    index: torch.Tensor,
    low: float,
    high: float,
    flip_seed: torch.Tensor | None,
    step: torch.Tensor,
    row_offset: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.image_batch`; CPU.

    Raises:
        IndexError: an index outside the store, named with its row.
    """
    n_images, height, width, channels = images_u8.shape
    rows = index.shape[0]
    batch = torch.empty((rows, height, width, channels), dtype=dtype)
    index = index.contiguous()
    _C.image_batch(
        images_u8.data_ptr(),
        n_images,
        height,
        width,
        channels,
        index.data_ptr(),
        rows,
        row_offset,
        (high - low) / 255.0,
        low,
        0 if flip_seed is None else flip_seed.data_ptr(),
        step.data_ptr(),
        FLIPS,
        _CODES[dtype],
        batch.data_ptr(),
        torch.get_num_threads(),
    )
    return batch.permute(0, 3, 1, 2)


def pack_codes(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.pack_codes`; CPU, and CUDA where :func:`on_cuda`.

    Raises:
        IndexError: on the CPU, a category outside 0 .. K-1, named with its row.
    """
    return _pack(noise, categories, continuous, categorical, dtype, code=-1, values=None)


def traversal(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    code: int,
    values: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.traversal`; CPU, and CUDA where :func:`on_cuda`."""
    return _pack(noise, categories, continuous, categorical, dtype, code=code, values=values)


def _pack(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
    code: int,
    values: torch.Tensor | None,
) -> torch.Tensor:
    categorical = tuple(categorical)
    rows, n_continuous = continuous.shape
    layout = _layout(categorical, (False,) * n_continuous, noise.shape[1])
    n_values = 1 if values is None else values.shape[0]
    dim = noise.shape[1] + sum(categorical) + n_continuous
    z = torch.empty((rows * n_values, dim), dtype=dtype, device=noise.device)
    noise, noise_stride = _rows(noise if noise.dtype in _CODES else noise.to(dtype))
    continuous, continuous_stride = _rows(continuous if continuous.dtype in _CODES else continuous.to(dtype))
    categories, values = categories.contiguous(), None if values is None else _floats(values)
    _C.pack_codes(
        layout,
        noise.data_ptr(),
        _CODES[noise.dtype],
        noise_stride,
        categories.data_ptr(),
        continuous.data_ptr(),
        _CODES[continuous.dtype],
        continuous_stride,
        rows,
        _CODES[dtype],
        z.data_ptr(),
        code,
        0 if values is None else values.data_ptr(),
        n_values,
        torch.get_num_threads(),
        *_queue(noise),
    )
    return z


def unpack_codes(z: torch.Tensor, noise: int, categorical: Sequence[int]) -> torch.Tensor:
    """The categories of packed ``z``, as the reference in :mod:`fastinfogan.ops.pack_codes`; CPU, and CUDA."""
    categorical = tuple(categorical)
    layout = _layout(categorical, (False,) * (z.shape[1] - noise - sum(categorical)), noise)
    categories = torch.empty((z.shape[0], len(categorical)), dtype=torch.int64, device=z.device)
    packed, stride = _rows(z)
    _C.unpack_codes(
        layout,
        packed.data_ptr(),
        _CODES[z.dtype],
        z.shape[0],
        stride,
        categories.data_ptr(),
        torch.get_num_threads(),
        *_queue(z),
    )
    return categories


def recognize(
    recognition: torch.Tensor, categorical: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the reference in :mod:`fastinfogan.ops.recognize`; CPU, and CUDA where :func:`on_cuda`."""
    categorical = tuple(categorical)
    rows = recognition.shape[0]
    n_continuous = (recognition.shape[1] - sum(categorical)) // 2
    layout = _layout(categorical, (False,) * n_continuous)
    device = recognition.device
    categories = torch.empty((rows, len(categorical)), dtype=torch.int64, device=device)
    confidence = torch.empty((rows, len(categorical)), dtype=torch.float32, device=device)
    mean = torch.empty((rows, n_continuous), dtype=torch.float32, device=device)
    std = torch.empty_like(mean)
    recognition, stride = _rows(recognition)
    _C.recognize(
        layout,
        recognition.data_ptr(),
        _CODES[recognition.dtype],
        rows,
        stride,
        categories.data_ptr(),
        confidence.data_ptr(),
        mean.data_ptr(),
        std.data_ptr(),
        torch.get_num_threads(),
        *_queue(recognition),
    )
    return categories, confidence, mean, std


# Patches made and used at a time, in bytes: they stay in the second-level caches of a few cores, and the products are
# still large enough to run at the full rate.
_PATCHES_AT_A_TIME = 4 << 20


def convolve(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.convolve`; CPU."""
    n, _, height, width = images.shape
    small_height, small_width = height // stride, width // stride
    small = torch.empty((n, small_height, small_width, matrix.shape[0]), dtype=images.dtype)
    rows, transposed = small.view(-1, matrix.shape[0]), matrix.t()
    for first, end, patches in _patches(images, stride, before):
        torch.mm(patches, transposed, out=rows[first:end])
    return small.permute(0, 3, 1, 2)


def convolve_transposed(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.convolve`; CPU."""
    n, channels, height, width = images.shape
    shape = (height * stride, width * stride, matrix.shape[1] // 16)
    large = torch.empty((n, *shape), dtype=images.dtype)
    rows, places = images.permute(0, 2, 3, 1).reshape(-1, channels), height * width
    chunk = _images_at_a_time(n, places * matrix.shape[1] * images.element_size())
    patches = torch.empty((chunk * places, matrix.shape[1]), dtype=images.dtype)
    for first in range(0, n, chunk):
        end = min(n, first + chunk)
        part = patches[: (end - first) * places]
        torch.mm(rows[first * places : end * places], matrix, out=part)
        _C.fold(end - first, *shape, height, width, stride, before, _CODES[images.dtype], part.data_ptr(),
                large[first].data_ptr(), torch.get_num_threads())  # fmt: skip
    return large.permute(0, 3, 1, 2)


def convolve_gradient(large: torch.Tensor, small: torch.Tensor, stride: int, before: int) -> torch.Tensor:
    """As the reference in :mod:`fastinfogan.ops.convolve`; CPU. Sums over chunks of images are taken in fp32."""
    rows = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
    total: torch.Tensor | None = None
    for first, end, patches in _patches(large, stride, before):
        part = rows[first:end].t() @ patches
        total = part if total is None else total.float().add_(part)
    if total is None:
        total = torch.zeros((small.shape[1], 16 * large.shape[1]))
    return total.to(small.dtype)


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
        _C.patches(end - first, height, width, channels, *small, stride, before, _CODES[images.dtype],
                   source[first].data_ptr(), part.data_ptr(), torch.get_num_threads())  # fmt: skip
        yield first * places, end * places, part


def _images_at_a_time(n: int, bytes_per_image: int) -> int:
    fit = max(1, _PATCHES_AT_A_TIME // max(1, bytes_per_image))
    return max(1, min(n, fit - fit % 32 if fit > 32 else fit))  # AMX takes 32 rows of a product at a time


def norm_act(
    x: torch.Tensor, bias: torch.Tensor, gain: torch.Tensor | None, slope: float, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the reference in :mod:`fastinfogan.ops.norm_act`; CPU."""
    x, bias = x.contiguous(), _floats(bias)
    gain = None if gain is None else _floats(gain)
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
        _CODES[x.dtype],
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
    x, bias, y_gradient = x.contiguous(), _floats(bias), y_gradient.to(x.dtype).contiguous()
    gain = None if gain is None else _floats(gain)
    rows, columns = x.shape
    x_gradient = torch.empty_like(x)
    gain_gradient, bias_gradient = torch.empty((2, columns), dtype=torch.float32)
    _C.norm_act_backward(
        groups,
        rows // groups,
        columns,
        eps,
        slope,
        _CODES[x.dtype],
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
    step: torch.Tensor,
    *rates: float,
) -> None:
    """As the reference in :mod:`fastinfogan.ops.adam`; CPU."""
    _C.adam(
        [weight.numel() for weight in weights],
        [weight.data_ptr() for weight in weights],
        [gradient.data_ptr() for gradient in gradients],
        [_CODES[gradient.dtype] for gradient in gradients],
        [moment.data_ptr() for moment in first_moments],
        [moment.data_ptr() for moment in second_moments],
        [copy.data_ptr() if copy.numel() else 0 for copy in copies],
        step.data_ptr(),
        *rates,
        torch.get_num_threads(),
    )
