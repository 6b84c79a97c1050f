"""The C++/CUDA extension ``fastinfogan._C`` under the arguments of each op's reference.

The extension knows no torch: this file allocates the outputs and hands over addresses, strides and the number of
threads. A call costs a few microseconds before it computes, so what depends on the codes alone is built once.
Shapes and devices have been checked by the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch  # before _C, so that both use the OpenMP runtime that torch brings

from fastinfogan.ops.arguments import DTYPES
from fastinfogan.ops.philox import FLIPS

INTERFACE = 1  # csrc/bindings.cpp's: an extension of another version would be called with what it does not take

why_not: str | None = None
try:
    import fastinfogan._C as _C

    if getattr(_C, "interface", 0) != INTERFACE:
        why_not = "the C++ extension is of another version of the package: pip install -e . builds it anew"
except ImportError as _error:
    why_not = f"the C++ extension is not built ({_error}): pip install -e . with a C++17 compiler builds it"

DTYPE_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}  # those of csrc's Dtype
_ABSENT = (0, -1, 0, 0)  # address, dtype, rows, stride


def available() -> bool:
    """Whether the extension is there; :data:`why_not` says what is missing otherwise."""
    return why_not is None


def keep_freed_memory() -> None:
    """Let the process reuse the host memory that it frees instead of returning it to the system; for good."""
    _C.keep_freed_memory()


def cuda_architectures() -> str:
    """What the extension's CUDA kernels were compiled for, such as ``sm_80 compute_90``; empty without them."""
    return str(_C.cuda_archs) if why_not is None and _C.built_with_cuda else ""


def on_cuda() -> bool:
    """Whether the extension serves ``pack_codes``, ``unpack_codes``, ``traversal`` and ``recognize`` on the GPUs here:
    none of them may be older than what it was compiled for.
    """
    compiled_for = [int(name.rpartition("_")[2]) for name in cuda_architectures().split()]
    here = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return bool(compiled_for) and all(10 * major + minor >= min(compiled_for) for major, minor in here)


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


def floats(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, of any shape, as contiguous float32: itself where it is that already."""
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
    continuous = torch.empty((batch, len(continuous_normal)), dtype=torch.float32)
    _C.sample_latents(
        layout,
        seed.data_ptr(),
        step.data_ptr(),
        stream,
        row_offset,
        batch,
        DTYPE_NUMBERS[dtype],
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
        real = (real_logits.data_ptr(), DTYPE_NUMBERS[real_logits.dtype], real_rows, real_logits.stride(0))
    q_gradient = None
    if recognition is None:
        layout, n_codes = _head_layout((), ()), 0
        recognition_address, recognition_dtype, recognition_stride = 0, -1, 0
        categories_address = continuous_address = weights_address = 0
    else:
        assert categories is not None and continuous is not None
        layout, n_codes = _head_layout(tuple(categorical), tuple(entropies)), len(entropies)
        recognition, recognition_stride = _rows(recognition)
        recognition_address, recognition_dtype = recognition.data_ptr(), DTYPE_NUMBERS[recognition.dtype]
        q_gradient = torch.empty(recognition.shape, dtype=recognition.dtype)
        categories, continuous = categories.contiguous(), floats(continuous)
        categories_address, continuous_address = categories.data_ptr(), continuous.data_ptr()
        code_weights = None if code_weights is None else floats(code_weights)
        weights_address = 0 if code_weights is None else code_weights.data_ptr()
    statistics = torch.empty(3 + 2 * n_codes, dtype=torch.float32)
    loss_scale = None if loss_scale is None else floats(loss_scale)
    _C.head_loss(
        layout,
        fake_logits.data_ptr(),
        DTYPE_NUMBERS[fake_logits.dtype],
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
        DTYPE_NUMBERS[dtype],
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
    noise, noise_stride = _rows(noise if noise.dtype in DTYPE_NUMBERS else noise.to(dtype))
    continuous, continuous_stride = _rows(continuous if continuous.dtype in DTYPE_NUMBERS else continuous.to(dtype))
    categories, values = categories.contiguous(), None if values is None else floats(values)
    _C.pack_codes(
        layout,
        noise.data_ptr(),
        DTYPE_NUMBERS[noise.dtype],
        noise_stride,
        categories.data_ptr(),
        continuous.data_ptr(),
        DTYPE_NUMBERS[continuous.dtype],
        continuous_stride,
        rows,
        DTYPE_NUMBERS[dtype],
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
        DTYPE_NUMBERS[z.dtype],
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
        DTYPE_NUMBERS[recognition.dtype],
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
