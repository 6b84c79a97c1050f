"""One batch of latents, drawn straight into the generator's input, with Q's targets beside it, in one launch.

Reads 16 bytes (seed and step); writes ``n * dim * b`` bytes of z for a storage type of b bytes, ``8 n n_categorical``
of categories and ``4 n n_continuous`` of continuous targets. Source: Chen et al. 2016, section 5 and appendix C.

Derivation:

1. Draw d of a row is word d mod 4 of Philox call d div 4, so one call makes four neighbouring draws. Draws are noise
   first, then one per categorical code, then one per continuous value.
2. Noise draw d is column d of z. One lane makes one call and writes its four columns: no word is thrown away. Lanes are
   numbered (row, call) without gaps, because rows of 17 calls in blocks of 32 would idle half of them.
3. The draws that follow (the codes) are made by a small tile [row, draw], again one call for four draws. Only the call
   that holds both the last noise and the first code is made twice.
4. Category of word w: the high word of w * K, which is floor(K * w / 2^32).
5. Each of the columns after the noise looks up its draw: column k of code i is 1 if k = start_i + category_i, a
   continuous column is the value. The look-up is one gather in shared memory.
6. A target is its value after rounding to z's type, so that Q is asked for what G was fed.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastinfogan.kernels.elementary import look_up
from fastinfogan.kernels.philox import normal_pair, uniform, words_of


@triton.jit
def _four_values(w0, w1, w2, w3, NORMAL: tl.constexpr):
    """Four words to four values of one prior: [..., 4] in the order of the draws."""
    if NORMAL:
        v0, v1 = normal_pair(w0, w1)
        v2, v3 = normal_pair(w2, w3)
    else:
        v0, v1, v2, v3 = uniform(w0), uniform(w1), uniform(w2), uniform(w3)
    return tl.join(tl.join(v0, v2), tl.join(v1, v3))


@triton.jit(do_not_specialize=["n_rows", "row_offset", "stream"])
def _sample_latents_kernel(
    z_ptr, categories_ptr, continuous_ptr, seed_ptr, step_ptr, n_rows, row_offset, stream,
    NOISE: tl.constexpr, NOISE_NORMAL: tl.constexpr, CATEGORICAL: tl.constexpr, STARTS: tl.constexpr,
    N_CATEGORICAL: tl.constexpr, N_ONE_HOT: tl.constexpr, NORMAL: tl.constexpr, N_CONTINUOUS: tl.constexpr,
    ANY_NORMAL: tl.constexpr, ANY_UNIFORM: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    ROW_BLOCK: tl.constexpr, CALL_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr,
):  # fmt: skip
    DIM: tl.constexpr = NOISE + N_ONE_HOT + N_CONTINUOUS
    N_CODES: tl.constexpr = N_CATEGORICAL + N_CONTINUOUS
    start = tl.program_id(0) * ROWS
    first = start.to(tl.int64)
    live_rows = tl.minimum(n_rows - start, ROWS)

    if NOISE > 0:
        CALLS: tl.constexpr = (NOISE + 3) // 4
        lane = tl.arange(0, LANES)
        row, call = lane // CALLS, lane % CALLS
        w0, w1, w2, w3 = words_of(call, row_offset + start + row, seed_ptr, step_ptr, stream)
        values = tl.reshape(_four_values(w0, w1, w2, w3, NOISE_NORMAL), (LANES, 4))
        word = tl.arange(0, 4)[None, :]
        mask = (row < live_rows)[:, None] & (4 * call[:, None] + word < NOISE)
        tl.store(z_ptr + first * DIM + (row * DIM + 4 * call)[:, None] + word, values, mask=mask)

    if N_CODES > 0:
        DRAWS: tl.constexpr = 4 * CALL_BLOCK
        # The first call that holds a code also holds this many draws of noise.
        SHARED: tl.constexpr = NOISE % 4
        row = tl.arange(0, ROW_BLOCK)
        call = tl.arange(0, CALL_BLOCK)[None, :] + NOISE // 4
        global_row = (row_offset + start + row)[:, None] + tl.zeros_like(call)
        w0, w1, w2, w3 = words_of(call + tl.zeros_like(global_row), global_row, seed_ptr, step_ptr, stream)
        code = tl.arange(0, DRAWS)[None, :] - SHARED
        live = (row < live_rows)[:, None]
        # What each draw came to: the column of its one among the columns after the noise, or the bits of its value.
        outcome = tl.zeros((ROW_BLOCK, DRAWS), tl.int32)

        if N_CATEGORICAL > 0:
            words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROW_BLOCK, DRAWS))
            size = look_up(code, CATEGORICAL, N_CATEGORICAL).to(tl.uint32)
            category = tl.umulhi(words, size + tl.zeros_like(words)).to(tl.int32)
            tl.store(categories_ptr + first * N_CATEGORICAL + row[:, None] * N_CATEGORICAL + code,
                     category.to(tl.int64), mask=live & (code >= 0) & (code < N_CATEGORICAL))  # fmt: skip
            outcome = category + look_up(code, STARTS, N_CATEGORICAL)

        if N_CONTINUOUS > 0:
            number = code - N_CATEGORICAL
            values = tl.zeros((ROW_BLOCK, DRAWS), tl.float32)
            if ANY_UNIFORM:
                values = tl.reshape(_four_values(w0, w1, w2, w3, False), (ROW_BLOCK, DRAWS))
            if ANY_NORMAL:
                normal = tl.reshape(_four_values(w0, w1, w2, w3, True), (ROW_BLOCK, DRAWS))
                values = tl.where(look_up(number, NORMAL, N_CONTINUOUS) == 1, normal, values)
            values = values.to(z_ptr.dtype.element_ty).to(tl.float32)
            tl.store(continuous_ptr + first * N_CONTINUOUS + row[:, None] * N_CONTINUOUS + number, values,
                     mask=live & (number >= 0) & (number < N_CONTINUOUS))  # fmt: skip
            outcome = tl.where(number < 0, outcome, values.to(tl.int32, bitcast=True))

        column = tl.arange(0, COLUMN_BLOCK)[None, :]
        if N_CATEGORICAL > 0:
            draw = tl.zeros_like(column)
            for i in tl.static_range(1, N_CATEGORICAL):
                draw += (column >= STARTS[i]).to(tl.int32)
            draw = tl.where(column < N_ONE_HOT, draw, column - N_ONE_HOT + N_CATEGORICAL)
        else:
            draw = column
        source = tl.minimum(draw + SHARED, DRAWS - 1) + DRAWS * row[:, None]
        # In one dimension: a gather along the rows of a narrow block fails to compile in triton 3.7.
        outcome = tl.reshape(outcome, (ROW_BLOCK * DRAWS,))
        outcome = tl.gather(outcome, tl.reshape(source, (ROW_BLOCK * COLUMN_BLOCK,)), 0)
        outcome = tl.reshape(outcome, (ROW_BLOCK, COLUMN_BLOCK))
        tail = tl.where(column < N_ONE_HOT, (outcome == column).to(tl.float32), outcome.to(tl.float32, bitcast=True))
        tl.store(z_ptr + first * DIM + row[:, None] * DIM + NOISE + column, tail,
                 mask=live & (column < N_ONE_HOT + N_CONTINUOUS))  # fmt: skip


# Settings. Four warps; 16 rows a program, or as many as keep its tiles within 512 Philox calls and 4,096 code columns:
# up to four independent calls a lane, and a batch of 128 still spreads over 8 multiprocessors.
_NUM_WARPS = 4
_LANES = 512
_ROWS = 16
_CODE_TILE = 4096


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
    """One launch of the kernel; arguments and results are those of ``fastinfogan.ops.sample_latents._reference``."""
    sizes, normal = tuple(categorical), tuple(int(n) for n in continuous_normal)
    n_tail = sum(sizes) + len(normal)
    z = seed.new_empty((batch, noise + n_tail), dtype=dtype)
    categories = seed.new_empty((batch, len(sizes)), dtype=torch.int64)
    continuous = seed.new_empty((batch, len(normal)), dtype=torch.float32)
    if batch == 0:
        return z, categories, continuous

    calls = triton.cdiv(noise, 4)
    column_block = triton.next_power_of_2(max(n_tail, 1))
    rows = max(1, min(_ROWS, _LANES // max(calls, 1), _CODE_TILE // column_block))
    code_calls = triton.cdiv(noise % 4 + len(sizes) + len(normal), 4)
    with torch.cuda.device_of(seed):
        _sample_latents_kernel[(triton.cdiv(batch, rows),)](
            z, categories, continuous, seed, step, batch,
            # The row word of the counter has 32 bits; as a signed number it is one argument type for every rank.
            (row_offset + (1 << 31)) % (1 << 32) - (1 << 31), stream,
            NOISE=noise, NOISE_NORMAL=noise_normal, CATEGORICAL=sizes,
            STARTS=tuple(sum(sizes[:i]) for i in range(len(sizes))), N_CATEGORICAL=len(sizes), N_ONE_HOT=sum(sizes),
            NORMAL=normal, N_CONTINUOUS=len(normal), ANY_NORMAL=any(normal), ANY_UNIFORM=not all(normal), ROWS=rows,
            LANES=triton.next_power_of_2(rows * max(calls, 1)), ROW_BLOCK=triton.next_power_of_2(rows),
            CALL_BLOCK=triton.next_power_of_2(max(code_calls, 1)), COLUMN_BLOCK=column_block,
            num_warps=_NUM_WARPS,
        )  # fmt: skip
    return z, categories, continuous
