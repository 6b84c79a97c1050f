"""The category of every categorical code of packed latents, in one launch: the inverse of ``pack_codes``.

Reads the one-hot columns, ``n * sum(K) * b`` bytes, and writes ``8 n n_categorical``. Noise and continuous values are
columns of the input already and are not copied.

Derivation:

1. A category is the place of the largest of its K columns, the lowest of equals. Columns past K count as -inf, so that
   codes of unequal K share one width.
2. One line of the tile is one (row, code) pair, numbered as the categories lie in memory: neighbouring lanes write
   neighbouring categories. With a code at a time they would lie 8 n_categorical bytes apart, a sector for each.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastinfogan.kernels.elementary import look_up


@triton.jit(do_not_specialize=["n_rows"])
def _unpack_codes_kernel(
    categories_ptr, z_ptr, z_row_stride, n_rows,
    NOISE: tl.constexpr, CATEGORICAL: tl.constexpr, STARTS: tl.constexpr, N_CATEGORICAL: tl.constexpr,
    EQUAL: tl.constexpr, LINES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * LINES
    # Lines are counted from the first whole row, so that only one division has 64 bits.
    first_row = first // N_CATEGORICAL
    line = (first - first_row * N_CATEGORICAL).to(tl.int32) + tl.arange(0, LINES)
    code, row = line % N_CATEGORICAL, first_row + line // N_CATEGORICAL
    if EQUAL:
        size = tl.full((LINES,), CATEGORICAL[0], tl.int32)
        start = code * CATEGORICAL[0]
    else:
        size = look_up(code, CATEGORICAL, N_CATEGORICAL)
        start = look_up(code, STARTS, N_CATEGORICAL)
    live = row < n_rows
    k = tl.arange(0, WIDTH)
    source = z_ptr + (row * z_row_stride + (NOISE + start))[:, None] + k[None, :]
    mask = live[:, None] & (k[None, :] < size[:, None])
    one_hot = tl.load(source, mask=mask, other=-float("inf")).to(tl.float32)
    category = tl.argmax(one_hot, axis=1, tie_break_left=True)
    tl.store(categories_ptr + first + tl.arange(0, LINES), category.to(tl.int64), mask=live)


# Settings. About 1,024 columns a program over four warps, 8 a lane.
_NUM_WARPS = 4
_BLOCK = 1024


def unpack_codes(z: torch.Tensor, noise: int, categorical: Sequence[int]) -> torch.Tensor:
    """One launch of the kernel; arguments and result are those of ``ops.pack_codes._unpack_reference``."""
    sizes = tuple(categorical)
    n_rows = z.shape[0]
    categories = z.new_empty((n_rows, len(sizes)), dtype=torch.int64)
    if categories.numel():
        if z.stride(1) != 1:
            z = z.contiguous()
        width = triton.next_power_of_2(max(sizes))
        lines = max(1, _BLOCK // width)
        with torch.cuda.device_of(z):
            _unpack_codes_kernel[(triton.cdiv(categories.numel(), lines),)](
                categories, z, z.stride(0), n_rows,
                NOISE=noise, CATEGORICAL=sizes, STARTS=tuple(sum(sizes[:i]) for i in range(len(sizes))),
                N_CATEGORICAL=len(sizes), EQUAL=len(set(sizes)) == 1, LINES=lines, WIDTH=width, num_warps=_NUM_WARPS,
            )  # fmt: skip
    return categories
