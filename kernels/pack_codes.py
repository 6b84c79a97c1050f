"""Noise, categories and continuous values to the generator's input ``[noise | one-hots | continuous]``, in one launch.

Reads ``n * (noise + n_continuous) * b_in + 8 n n_categorical`` bytes and writes ``n * dim * b``. Serves traversals and
codes set by hand; a training step draws its input packed (``sample_latents``).

Derivation:

1. z is contiguous: value e of a tile of whole rows is column e mod dim of row e div dim. Numbered so, no lane idles
   whatever dim is, and stores are 128 bits wide even where a row (148 bytes for MNIST in bf16) is no multiple of that.
2. Column of noise or of a continuous code: the value. Column k of a categorical code: 1 if its category is k, else 0.

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
    N_ONE_HOT: tl.constexpr, N_CONTINUOUS: tl.constexpr, EQUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    DIM: tl.constexpr = NOISE + N_ONE_HOT + N_CONTINUOUS
    start = tl.program_id(0) * ROWS
    live_rows = tl.minimum(n_rows - start, ROWS)
    element = tl.arange(0, BLOCK)
    row, column = element // DIM, element % DIM
    live = row < live_rows
    source_row = start.to(tl.int64) + row
    value = tl.zeros((BLOCK,), tl.float32)

    if NOISE > 0:
        source = noise_ptr + source_row * noise_row_stride + column * noise_column_stride
        value = tl.load(source, mask=live & (column < NOISE), other=0.0).to(tl.float32)
    if N_CATEGORICAL > 0:
        hot_column = column - NOISE
        if EQUAL:
            code = hot_column // CATEGORICAL[0]
            k = hot_column % CATEGORICAL[0]
        else:
            code = tl.zeros((BLOCK,), tl.int32)
            for i in tl.static_range(1, N_CATEGORICAL):
                code += (hot_column >= STARTS[i]).to(tl.int32)
            k = hot_column - look_up(code, STARTS, N_CATEGORICAL)
        is_hot = (hot_column >= 0) & (hot_column < N_ONE_HOT)
        source = categories_ptr + source_row * categories_row_stride + code * categories_column_stride
        category = tl.load(source, mask=live & is_hot, other=-1)
        value = tl.where(is_hot, (category == k).to(tl.float32), value)
    if N_CONTINUOUS > 0:
        number = column - (NOISE + N_ONE_HOT)
        source = continuous_ptr + source_row * continuous_row_stride + number * continuous_column_stride
        continuous = tl.load(source, mask=live & (number >= 0), other=0.0).to(tl.float32)
        value = tl.where(number >= 0, continuous, value)

    z_ptr += start.to(tl.int64) * DIM
    # The limit of a full tile is known at compile time; a limit known only at run time would narrow the stores.
    if live_rows == ROWS:
        tl.store(z_ptr + element, value, mask=element < ROWS * DIM)
    else:
        tl.store(z_ptr + element, value, mask=element < live_rows * DIM)


# Settings. Four warps and about 2,048 values a program, 16 a lane; a multiple of 8 rows, so that a tile begins and ends
# on 16 bytes.
_NUM_WARPS = 4
_BLOCK = 2048


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
    dim = n_noise + sum(sizes) + n_continuous
    z = noise.new_empty((n_rows, dim), dtype=dtype)
    if z.numel():
        rows = max(8, _BLOCK // dim // 8 * 8)
        with torch.cuda.device_of(noise):
            _pack_codes_kernel[(triton.cdiv(n_rows, rows),)](
                z, noise, *noise.stride(), categories, *categories.stride(), continuous, *continuous.stride(), n_rows,
                NOISE=n_noise, CATEGORICAL=sizes, STARTS=tuple(sum(sizes[:i]) for i in range(len(sizes))),
                N_CATEGORICAL=len(sizes), N_ONE_HOT=sum(sizes), N_CONTINUOUS=n_continuous, EQUAL=len(set(sizes)) == 1,
                ROWS=rows, BLOCK=triton.next_power_of_2(rows * dim), num_warps=_NUM_WARPS,
            )  # fmt: skip
    return z
