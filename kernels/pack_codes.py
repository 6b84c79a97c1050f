"""Noise, categories and continuous values to the generator's input ``[noise | one-hots | continuous]``, in one launch.

Reads ``n * (noise + n_continuous) * b_in + 8 n n_categorical`` bytes and writes ``n * dim * b``. Serves traversals and
codes set by hand; a training step draws its input packed (``sample_latents``).

Derivation:

1. z is contiguous: its value e is column e mod dim of row e div dim. Tiles of a fixed number of values, whatever dim is
   and wherever rows begin, idle no lane and store 128 bits at once even where a row (148 bytes for MNIST in bf16) is no
   multiple of that.
2. Column of noise or of a continuous code: the value. Column k of a categorical code: 1 if its category is k, else 0.
3. A lane that stores 16 bytes holds 8 neighbouring values in bf16. Were it also to load them, neighbouring lanes' loads
   would lie 32 bytes apart, a sector for each. So values are made one a lane, neighbours by neighbours, and change
   lanes in shared memory on their way to the store.

A category outside 0 .. K-1 leaves its columns zero.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastinfogan.kernels.elementary import look_up


@triton.jit(do_not_specialize=["n_rows"])
def _pack_codes_kernel(
    z_ptr, noise_ptr, noise_row_stride, noise_column_stride, categories_ptr, categories_row_stride,
    categories_column_stride, continuous_ptr, continuous_row_stride, continuous_column_stride, n_rows,
    NOISE: tl.constexpr, CATEGORICAL: tl.constexpr, STARTS: tl.constexpr, N_CATEGORICAL: tl.constexpr,
    N_ONE_HOT: tl.constexpr, N_CONTINUOUS: tl.constexpr, EQUAL: tl.constexpr, BLOCK: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    DIM: tl.constexpr = NOISE + N_ONE_HOT + N_CONTINUOUS
    start = tl.program_id(0).to(tl.int64) * BLOCK
    n_live = tl.minimum(n_rows.to(tl.int64) * DIM - start, BLOCK).to(tl.int32)
    # Values are counted from the beginning of the tile's first row, so that only one division has 64 bits.
    first_row = start // DIM
    # Two dimensions, or the compiler would give the loads the store's 16 bytes a lane.
    lane = tl.arange(0, BLOCK // WARP)[:, None] * WARP + tl.arange(0, WARP)[None, :]
    element = (start - first_row * DIM).to(tl.int32) + lane
    row, column = first_row + element // DIM, element % DIM
    live = lane < n_live
    value = tl.zeros((BLOCK // WARP, WARP), tl.float32)

    if NOISE > 0:
        source = noise_ptr + row * noise_row_stride + column * noise_column_stride
        value = tl.load(source, mask=live & (column < NOISE), other=0.0).to(tl.float32)
    if N_CATEGORICAL > 0:
        hot_column = column - NOISE
        if EQUAL:
            code = hot_column // CATEGORICAL[0]
            k = hot_column % CATEGORICAL[0]
        else:
            code = tl.zeros((BLOCK // WARP, WARP), tl.int32)
            for i in tl.static_range(1, N_CATEGORICAL):
                code += (hot_column >= STARTS[i]).to(tl.int32)
            k = hot_column - look_up(code, STARTS, N_CATEGORICAL)
        is_hot = (hot_column >= 0) & (hot_column < N_ONE_HOT)
        source = categories_ptr + row * categories_row_stride + code * categories_column_stride
        category = tl.load(source, mask=live & is_hot, other=-1)
        value = tl.where(is_hot, (category == k).to(tl.float32), value)
    if N_CONTINUOUS > 0:
        number = column - (NOISE + N_ONE_HOT)
        source = continuous_ptr + row * continuous_row_stride + number * continuous_column_stride
        continuous = tl.load(source, mask=live & (number >= 0), other=0.0).to(tl.float32)
        value = tl.where(number >= 0, continuous, value)

    value = tl.reshape(value.to(z_ptr.dtype.element_ty), (BLOCK,))
    place = tl.arange(0, BLOCK)
    # A limit that is no multiple of a lane's values would narrow all stores, those of full tiles included.
    if n_live % 8 == 0:
        tl.store(z_ptr + start + place, value, mask=place < n_live // 8 * 8)
    else:
        tl.store(z_ptr + start + place, value, mask=place < n_live)


# Settings. Four warps and 1,024 values a program, 8 a lane: 16 bytes of bf16, and a batch of 128 spreads over 10
# multiprocessors (MNIST) to 29 (CelebA).
_NUM_WARPS = 4
_BLOCK = 1024
_WARP = 32


def _with_near_columns(table: torch.Tensor) -> torch.Tensor:
    """``table`` itself for any strides; a copy only where its last column is 2^31 values away or more, in 32 bits."""
    return table if table.shape[1] * table.stride(1) < 2**31 else table.contiguous()


def pack_codes(
    noise: torch.Tensor,
    categories: torch.Tensor,
    continuous: torch.Tensor,
    categorical: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """One launch of the kernel; arguments and result are those of ``fastinfogan.ops.pack_codes._reference``.

    float32, bfloat16 or float16; float64 inputs are rounded to fp32 on the way.
    """
    sizes = tuple(categorical)
    n_rows, n_noise = noise.shape
    n_continuous = continuous.shape[1]
    noise, categories, continuous = map(_with_near_columns, (noise, categories, continuous))
    z = noise.new_empty((n_rows, n_noise + sum(sizes) + n_continuous), dtype=dtype)
    if z.numel():
        with torch.cuda.device_of(noise):
            _pack_codes_kernel[(triton.cdiv(z.numel(), _BLOCK),)](
                z, noise, *noise.stride(), categories, *categories.stride(), continuous, *continuous.stride(), n_rows,
                NOISE=n_noise, CATEGORICAL=sizes, STARTS=tuple(sum(sizes[:i]) for i in range(len(sizes))),
                N_CATEGORICAL=len(sizes), N_ONE_HOT=sum(sizes), N_CONTINUOUS=n_continuous, EQUAL=len(set(sizes)) == 1,
                BLOCK=_BLOCK, WARP=_WARP, num_warps=_NUM_WARPS,
            )  # fmt: skip
    return z
