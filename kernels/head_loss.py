"""The joint loss of the D and Q heads and its gradients with respect to every logit, in one launch.

Reads real, fake, recognition, categories and continuous once, writes the three gradients once:
``(2 n + 2 m) * b + n * head_dim * 2 b + 8 n n_categorical + 4 n n_continuous`` bytes for a storage type of b bytes, and
``4 (3 + 2 n_codes)`` of statistics. Source: Chen et al. 2016, Eq. 1 (the game), Eq. 5 (the bound L_I), section 6 (the
softmax and the factored Gaussian of Q).

Derivation:

1. softplus(x) = ln(1 + e^x), and d softplus(x) / dx = sigmoid(x) = 1 / (1 + e^-x).
   D phase, Eq. 1: -ln D(x) = softplus(-real) and -ln(1 - D(G(z))) = softplus(fake).
   G phase: softplus(-fake), or Eq. 1's own ln(1 - D) = -softplus(fake).
2. Categorical code, logits l, target t, p = softmax(l): -ln p_t = (m - l_t) + ln sum_k e^(l_k - m) with m = max l.
   Both parts are >= 0, so their sum over rows never cancels. d(-ln p_t) / d l_k = p_k - [k = t].
3. Continuous code, d = (c - mean) / std, std = exp(log_std): -ln N = d^2 / 2 + log_std + ln(2 pi) / 2;
   d(-ln N) / d mean = -d / std, and d(-ln N) / d log_std = 1 - d^2.
4. A log-std below LOG_STD_MIN counts as LOG_STD_MIN. Its gradient is kept where it is negative, as descending it leads
   back above; where it is positive it would only push further down, and is zero.
5. Eq. 5: L_I = H(c) + E[ln Q(c|x)] = H(c) - term, per code, in nats.
6. Every gradient is multiplied in fp32 by weight * loss_scale / n before its one rounding to the storage type.

A category outside 0 .. K-1 addresses nothing: that code's term is NaN, its gradient on that row zero.
"""

import math
import threading
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastinfogan.kernels.elementary import log_of_sum, look_up, softplus_and_sigmoid

_HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2.0 * math.pi))
_LOG_STD_MIN = tl.constexpr(-0.5 * math.log(2.0 * math.pi))


@triton.jit
def _adversarial_tile(logits_ptr, stride, gradient_ptr, start, n_live, factor, SIGN: tl.constexpr, ROWS: tl.constexpr):
    lane = tl.arange(0, ROWS)
    live = lane < n_live
    first = tl.to_tensor(start).to(tl.int64)
    x = tl.load(logits_ptr + first * stride + lane * stride, mask=live, other=0.0).to(tl.float32)
    softplus, sigmoid = softplus_and_sigmoid(SIGN * x)
    tl.store(gradient_ptr + first + lane, SIGN * factor * sigmoid, mask=live)
    return tl.where(live, softplus, 0.0)


@triton.jit
def _adversarial(logits_ptr, stride, gradient_ptr, begin, end, factor, SIGN: tl.constexpr, ROWS: tl.constexpr,
                 WIDE: tl.constexpr):  # fmt: skip
    """Sum of softplus(SIGN * x) over rows begin .. end - 1; writes factor times the gradient."""
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(begin, end, ROWS):
        if WIDE and end - start >= ROWS:
            # A limit known at compile time is no mask at all, and so the accesses can be 128 bits wide.
            total += _adversarial_tile(logits_ptr, stride, gradient_ptr, start, ROWS, factor, SIGN, ROWS)
        else:
            total += _adversarial_tile(logits_ptr, stride, gradient_ptr, start, end - start, factor, SIGN, ROWS)
    return tl.sum(total, 0)


@triton.jit
def _categorical(recognition_ptr, categories_ptr, weights_ptr, gradient_ptr, begin, end, factor,
                 CATEGORICAL: tl.constexpr, STARTS: tl.constexpr, N_CODES: tl.constexpr, EQUAL: tl.constexpr,
                 RECOGNITION_STRIDE: tl.constexpr, CATEGORIES_STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
                 ROWS: tl.constexpr, PAIRS: tl.constexpr, K_BLOCK: tl.constexpr, CODE_BLOCK: tl.constexpr):  # fmt: skip
    """Sum over rows of -ln p_t of each code, in CODE_BLOCK lanes; writes the gradients of the logits.

    One line of the tile is one (row, code) pair, so that all codes share one softmax and no line is longer than the
    longest code. ROWS whole rows fill the tile: a line keeps its code from one iteration to the next.
    """
    line = tl.arange(0, PAIRS)
    code, row = line % N_CODES, line // N_CODES
    k = tl.arange(0, K_BLOCK)[None, :]
    if EQUAL:
        size = tl.full((PAIRS,), CATEGORICAL[0], tl.int32)
        column = code * CATEGORICAL[0]
        in_code = k < CATEGORICAL[0]
    else:
        size = look_up(code, CATEGORICAL, N_CODES)
        column = look_up(code, STARTS, N_CODES)
        in_code = k < size[:, None]
    if weights_ptr is not None:
        factor = factor * tl.load(weights_ptr + code).to(tl.float32)
    else:
        factor = tl.zeros((PAIRS,), tl.float32) + factor
    source = (row * RECOGNITION_STRIDE + column)[:, None] + k
    target_offset = row * CATEGORIES_STRIDE + code
    destination = (row * HEAD_DIM + column)[:, None] + k
    # Lines without a row compute a softmax of zeros, which is finite, and write nothing.
    filler = tl.where(in_code, 0.0, float("-inf"))

    below_peak = tl.zeros((PAIRS, K_BLOCK), tl.float32)
    log_total = tl.zeros((PAIRS,), tl.float32)
    for start in range(begin, end, ROWS):
        first = tl.to_tensor(start).to(tl.int64)
        live = (line < ROWS * N_CODES) & (row < end - start)
        mask = live[:, None] & in_code
        logits = tl.load(recognition_ptr + first * RECOGNITION_STRIDE + source, mask=mask, other=filler).to(tl.float32)
        target = tl.load(categories_ptr + first * CATEGORIES_STRIDE + target_offset, mask=live, other=0)
        valid = (target >= 0) & (target < size)
        hot = (k == target.to(tl.int32)[:, None]) & mask
        peak = tl.max(logits, 1)
        exponential = tl.exp(logits - peak[:, None])
        total = tl.sum(exponential, 1)
        below_peak += tl.where(hot, peak[:, None] - logits, 0.0)
        log_total += tl.where(live, tl.where(valid, log_of_sum(total), float("nan")), 0.0)
        step = tl.where(valid, factor, 0.0)
        gradient = exponential * (step / total)[:, None] - tl.where(hot, step[:, None], 0.0)
        tl.store(gradient_ptr + first * HEAD_DIM + destination, gradient, mask=mask)

    terms = log_total + tl.sum(below_peak, 1)
    mine = code[:, None] == tl.arange(0, CODE_BLOCK)[None, :]
    return tl.sum(tl.where(mine, terms[:, None], 0.0), 0)


@triton.jit
def _continuous(recognition_ptr, continuous_ptr, weights_ptr, gradient_ptr, begin, end, factor,
                FIRST_COLUMN: tl.constexpr, N_CATEGORICAL: tl.constexpr, N_CODES: tl.constexpr,
                RECOGNITION_STRIDE: tl.constexpr, CONTINUOUS_STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
                FIXED_STD: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
                CODE_BLOCK: tl.constexpr):  # fmt: skip
    """Sum over rows of -ln N of each continuous code, in CODE_BLOCK lanes; one lane per (row, code)."""
    lane = tl.arange(0, LANES)
    code, row = lane % N_CODES, lane // N_CODES
    if weights_ptr is not None:
        factor = factor * tl.load(weights_ptr + N_CATEGORICAL + code).to(tl.float32)
    source = row * RECOGNITION_STRIDE + FIRST_COLUMN + code
    target_offset = row * CONTINUOUS_STRIDE + code
    destination = row * HEAD_DIM + FIRST_COLUMN + code

    terms = tl.zeros((LANES,), tl.float32)
    for start in range(begin, end, ROWS):
        first = tl.to_tensor(start).to(tl.int64)
        live = (lane < ROWS * N_CODES) & (row < end - start)
        here = recognition_ptr + first * RECOGNITION_STRIDE + source
        mean = tl.load(here, mask=live, other=0.0).to(tl.float32)
        target = tl.load(continuous_ptr + first * CONTINUOUS_STRIDE + target_offset, mask=live, other=0.0)
        if FIXED_STD:
            raw = tl.zeros((LANES,), tl.float32)
        else:
            raw = tl.load(here + N_CODES, mask=live, other=0.0).to(tl.float32)
        low = raw < _LOG_STD_MIN
        log_std = tl.where(low, _LOG_STD_MIN, raw)
        inverse_std = tl.exp(-log_std)
        distance = (target.to(tl.float32) - mean) * inverse_std
        terms += tl.where(live, 0.5 * distance * distance + log_std + _HALF_LOG_2PI, 0.0)
        there = gradient_ptr + first * HEAD_DIM + destination
        tl.store(there, -factor * distance * inverse_std, mask=live)
        slope = 1.0 - distance * distance
        stopped = (slope > 0) & low
        if FIXED_STD:
            stopped = live
        tl.store(there + N_CODES, tl.where(stopped, 0.0, factor * slope), mask=live)

    mine = code[:, None] == tl.arange(0, CODE_BLOCK)[None, :]
    return tl.sum(tl.where(mine, terms[:, None], 0.0), 0)


@triton.jit
def _store_codes(statistics_ptr, sums, inverse_rows, weights_ptr, ENTROPIES: tl.constexpr, FIRST: tl.constexpr,
                 N: tl.constexpr, N_CODES: tl.constexpr, CODE_BLOCK: tl.constexpr):  # fmt: skip
    """Write terms and information of codes FIRST .. FIRST + N - 1; return their weighted sum."""
    code = tl.arange(0, CODE_BLOCK)
    live = code < N
    terms = sums * inverse_rows
    tl.store(statistics_ptr + 3 + FIRST + code, terms, mask=live)
    information = look_up(code, ENTROPIES, N) - terms
    tl.store(statistics_ptr + 3 + N_CODES + FIRST + code, information, mask=live)
    if weights_ptr is not None:
        terms *= tl.load(weights_ptr + FIRST + code, mask=live, other=0.0).to(tl.float32)
    return tl.sum(tl.where(live, terms, 0.0), 0)


@triton.jit(do_not_specialize=["n_fake", "n_real", "fake_tiles", "real_tiles", "n_programs"])
def _head_loss_kernel(
    fake_ptr, fake_stride, real_ptr, real_stride, recognition_ptr, categories_ptr, continuous_ptr,
    weights_ptr, loss_scale_ptr, statistics_ptr, real_gradient_ptr, fake_gradient_ptr, recognition_gradient_ptr,
    partials_ptr, arrivals_ptr, n_fake, n_real, fake_tiles, real_tiles, n_programs,
    CATEGORICAL: tl.constexpr, STARTS: tl.constexpr, CATEGORICAL_ENTROPIES: tl.constexpr,
    CONTINUOUS_ENTROPIES: tl.constexpr, N_CATEGORICAL: tl.constexpr, N_CONTINUOUS: tl.constexpr,
    N_LOGITS: tl.constexpr, EQUAL: tl.constexpr, RECOGNITION_STRIDE: tl.constexpr, CATEGORIES_STRIDE: tl.constexpr,
    CONTINUOUS_STRIDE: tl.constexpr, SATURATING: tl.constexpr, FIXED_STD: tl.constexpr, ROWS: tl.constexpr,
    LOGIT_BLOCK: tl.constexpr, PAIRS: tl.constexpr, K_BLOCK: tl.constexpr, LANES: tl.constexpr,
    CATEGORICAL_BLOCK: tl.constexpr, CONTINUOUS_BLOCK: tl.constexpr, PARTIAL_ROWS: tl.constexpr,
):  # fmt: skip
    N_CODES: tl.constexpr = N_CATEGORICAL + N_CONTINUOUS
    HEAD_DIM: tl.constexpr = N_LOGITS + 2 * N_CONTINUOUS
    program = tl.program_id(0)
    inverse_fake = 1.0 / tl.maximum(n_fake, 1).to(tl.float32)
    inverse_real = 1.0 / tl.maximum(n_real, 1).to(tl.float32)
    fake_factor, real_factor = inverse_fake, inverse_real
    if loss_scale_ptr is not None:
        scale = tl.load(loss_scale_ptr).to(tl.float32)
        fake_factor, real_factor = inverse_fake * scale, inverse_real * scale

    begin = program * fake_tiles * ROWS
    end = tl.minimum(begin + fake_tiles * ROWS, n_fake)
    real_sum = 0.0
    WIDE: tl.constexpr = LOGIT_BLOCK == 1024
    if real_ptr is not None:
        real_begin = program * real_tiles * ROWS
        real_end = tl.minimum(real_begin + real_tiles * ROWS, n_real)
        real_sum = _adversarial(real_ptr, real_stride, real_gradient_ptr, real_begin, real_end, real_factor,
                                -1.0, LOGIT_BLOCK, WIDE)  # fmt: skip
        fake_sum = _adversarial(fake_ptr, fake_stride, fake_gradient_ptr, begin, end, fake_factor,
                                1.0, LOGIT_BLOCK, WIDE)  # fmt: skip
    elif SATURATING:
        fake_sum = -_adversarial(fake_ptr, fake_stride, fake_gradient_ptr, begin, end, -fake_factor,
                                 1.0, LOGIT_BLOCK, WIDE)  # fmt: skip
    else:
        fake_sum = _adversarial(fake_ptr, fake_stride, fake_gradient_ptr, begin, end, fake_factor,
                                -1.0, LOGIT_BLOCK, WIDE)  # fmt: skip

    if N_CATEGORICAL > 0:
        categorical_sums = _categorical(
            recognition_ptr, categories_ptr, weights_ptr, recognition_gradient_ptr, begin, end, fake_factor,
            CATEGORICAL, STARTS, N_CATEGORICAL, EQUAL, RECOGNITION_STRIDE, CATEGORIES_STRIDE, HEAD_DIM, ROWS, PAIRS,
            K_BLOCK, CATEGORICAL_BLOCK,
        )  # fmt: skip
    if N_CONTINUOUS > 0:
        continuous_sums = _continuous(
            recognition_ptr, continuous_ptr, weights_ptr, recognition_gradient_ptr, begin, end, fake_factor, N_LOGITS,
            N_CATEGORICAL, N_CONTINUOUS, RECOGNITION_STRIDE, CONTINUOUS_STRIDE, HEAD_DIM, FIXED_STD, ROWS, LANES,
            CONTINUOUS_BLOCK,
        )  # fmt: skip

    last = True
    if arrivals_ptr is not None:
        # Each program leaves its sums in a row of its own; whoever arrives last adds the rows in the order of their
        # numbers, so that the bits do not depend on who that was, and leaves the counter at zero for the next launch.
        WIDTH: tl.constexpr = 2 + N_CODES
        mine = partials_ptr + program * WIDTH
        tl.store(mine, real_sum)
        tl.store(mine + 1, fake_sum)
        if N_CATEGORICAL > 0:
            code = tl.arange(0, CATEGORICAL_BLOCK)
            tl.store(mine + 2 + code, categorical_sums, mask=code < N_CATEGORICAL)
        if N_CONTINUOUS > 0:
            code = tl.arange(0, CONTINUOUS_BLOCK)
            tl.store(mine + 2 + N_CATEGORICAL + code, continuous_sums, mask=code < N_CONTINUOUS)
        # All threads' partials come before the one thread that counts this program's arrival.
        tl.debug_barrier()
        last = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel") == n_programs - 1
        if last:
            tl.store(arrivals_ptr, 0)
            other = tl.arange(0, PARTIAL_ROWS)
            rows = partials_ptr + other * WIDTH
            live = other < n_programs
            # .cg: read where the other programs' stores are, in L2.
            real_sum = tl.sum(tl.load(rows, mask=live, other=0.0, cache_modifier=".cg"), 0)
            fake_sum = tl.sum(tl.load(rows + 1, mask=live, other=0.0, cache_modifier=".cg"), 0)
            if N_CATEGORICAL > 0:
                code = tl.arange(0, CATEGORICAL_BLOCK)
                table = tl.load(rows[:, None] + (2 + code)[None, :], other=0.0, cache_modifier=".cg",
                                mask=live[:, None] & (code < N_CATEGORICAL)[None, :])  # fmt: skip
                categorical_sums = tl.sum(table, 0)
            if N_CONTINUOUS > 0:
                code = tl.arange(0, CONTINUOUS_BLOCK)
                table = tl.load(rows[:, None] + (2 + N_CATEGORICAL + code)[None, :], other=0.0, cache_modifier=".cg",
                                mask=live[:, None] & (code < N_CONTINUOUS)[None, :])  # fmt: skip
                continuous_sums = tl.sum(table, 0)

    if last:
        real_term, fake_term = real_sum * inverse_real, fake_sum * inverse_fake
        loss = real_term + fake_term
        if N_CATEGORICAL > 0:
            loss += _store_codes(statistics_ptr, categorical_sums, inverse_fake, weights_ptr, CATEGORICAL_ENTROPIES, 0,
                                 N_CATEGORICAL, N_CODES, CATEGORICAL_BLOCK)  # fmt: skip
        if N_CONTINUOUS > 0:
            loss += _store_codes(statistics_ptr, continuous_sums, inverse_fake, weights_ptr, CONTINUOUS_ENTROPIES,
                                 N_CATEGORICAL, N_CONTINUOUS, N_CODES, CONTINUOUS_BLOCK)  # fmt: skip
        tl.store(statistics_ptr, loss)
        tl.store(statistics_ptr + 1, real_term)
        tl.store(statistics_ptr + 2, fake_term)


# Settings. Eight warps hold a tile of 2,048 logits, 8 a lane; 16 a lane spill. Left alone the compiler stops at 80
# registers and spills one of them; with a limit of 168 it takes 76 to 115 where codes have equal K, up to 155 where
# they have not, and spills none. Two tiles or fewer are one program: to combine programs takes an atomic and a second
# trip to L2, reckoned (not measured) to be about the time of a tile. More tiles are spread over up to 256 programs,
# two for each multiprocessor of an H100; beyond that one takes several. Without categorical codes a row is a few
# operations and four warps are enough: 512 continuous values a tile, or 1,024 logits, 8 a lane, which makes 128-bit
# accesses.
_NUM_WARPS = 8
_NUM_WARPS_WITHOUT_LOGITS = 4
_TILE = 2048
_CONTINUOUS_TILE = 512
_LOGIT_BLOCK = 1024
_TILES_OF_ONE_PROGRAM = 2
_MAX_PROGRAMS = 256
_MAX_REGISTERS = 168
_COUNTERS = 64

_arrivals: dict[torch.device, tuple[torch.Tensor, dict[int, int]]] = {}
_arriving = threading.Lock()  # an evaluation has a thread and a stream of its own


def _arrival_counter(device: torch.device) -> torch.Tensor:
    """A zero that outlives the launch, one per stream, as launches on one stream cannot overlap.

    All counters of a device are made at its first launch, outside any capture: a launch that is captured must not
    allocate one in the graph's own memory.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    with _arriving:
        if device not in _arrivals:
            zeros = torch.zeros(_COUNTERS, dtype=torch.int32, device=device)
            if device.type == "cuda":
                # Once: launches on other streams must find zeros too. Within a capture it raises, and nothing is kept.
                torch.cuda.current_stream(device).synchronize()
            _arrivals[device] = zeros, {}
        counters, slots = _arrivals[device]
        slot = slots.setdefault(stream, len(slots))
    return counters[slot % _COUNTERS]


def _with_unit_columns(table: torch.Tensor) -> torch.Tensor:
    """``table`` itself for any row stride; a copy only where its columns are not neighbours in memory."""
    return table if table.stride(1) == 1 or table.shape[1] <= 1 else table.contiguous()


def _tile_of(sizes: tuple[int, ...], n_continuous: int, n_rows: int) -> tuple[int, int, int]:
    """Lanes of one softmax, rows of a tile, and lanes of its continuous values; smaller where ``n_rows`` fill less."""
    k_block = triton.next_power_of_2(max(sizes, default=1))
    per_row = len(sizes) or n_continuous or 1
    most = _TILE // k_block if sizes else (_CONTINUOUS_TILE if n_continuous else _LOGIT_BLOCK)
    lanes = min(most, triton.next_power_of_2(n_rows * per_row))
    rows = max(lanes // per_row, 1)
    # Multiples of four rows begin a tile on at least 8 bytes of every tensor.
    rows -= rows % 4 if rows > 4 else 0
    return k_block, rows, triton.next_power_of_2(rows * max(n_continuous, 1))


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
    """One launch of the kernel; arguments and results are those of ``fastinfogan.ops.head_loss._reference``.

    float32, bfloat16 or float16; the arithmetic and the statistics are fp32.
    """
    n_fake, n_real = len(fake_logits), 0 if real_logits is None else len(real_logits)
    n_continuous = 0 if recognition is None or continuous is None else continuous.shape[1]
    sizes = () if recognition is None else tuple(categorical)
    n_codes = len(sizes) + n_continuous
    code_weights = None if code_weights is None else code_weights.contiguous()
    strides = [0, 0, 0]
    if recognition is not None and categories is not None and continuous is not None:
        recognition, categories, continuous = map(_with_unit_columns, (recognition, categories, continuous))
        strides = [recognition.stride(0), categories.stride(0), continuous.stride(0)]

    warps = _NUM_WARPS if sizes else _NUM_WARPS_WITHOUT_LOGITS
    k_block, rows, lanes = _tile_of(sizes, n_continuous, max(n_fake, n_real, 1))
    # No fewer lanes than threads: of a shorter tile Triton has several warps load the same values.
    lanes = max(lanes, 32 * warps)
    tiles_fake, tiles_real = triton.cdiv(n_fake, rows), triton.cdiv(n_real, rows)
    tiles = max(tiles_fake, tiles_real, 1)
    programs = 1 if tiles <= _TILES_OF_ONE_PROGRAM else min(tiles, _MAX_PROGRAMS)

    statistics = fake_logits.new_empty(3 + 2 * n_codes, dtype=torch.float32)
    real_gradient = fake_logits.new_empty(0) if real_logits is None else real_logits.new_empty(n_real)
    fake_gradient = fake_logits.new_empty(n_fake)
    recognition_gradient = fake_logits.new_empty(0) if recognition is None else recognition.new_empty(recognition.shape)
    partials = None if programs == 1 else fake_logits.new_empty(programs * (2 + n_codes), dtype=torch.float32)
    with torch.cuda.device_of(fake_logits):
        _head_loss_kernel[(programs,)](
            fake_logits, fake_logits.stride(0), real_logits, 0 if real_logits is None else real_logits.stride(0),
            recognition, categories, continuous, code_weights, loss_scale,
            statistics, real_gradient, fake_gradient, recognition_gradient,
            partials, None if programs == 1 else _arrival_counter(fake_logits.device),
            n_fake, n_real, triton.cdiv(tiles_fake, programs), triton.cdiv(tiles_real, programs), programs,
            CATEGORICAL=sizes, STARTS=tuple(sum(sizes[:i]) for i in range(len(sizes))),
            CATEGORICAL_ENTROPIES=tuple(entropies[: len(sizes)]),
            CONTINUOUS_ENTROPIES=tuple(entropies[len(sizes) : n_codes]),
            N_CATEGORICAL=len(sizes), N_CONTINUOUS=n_continuous, N_LOGITS=sum(sizes), EQUAL=len(set(sizes)) == 1,
            RECOGNITION_STRIDE=strides[0], CATEGORIES_STRIDE=strides[1], CONTINUOUS_STRIDE=strides[2],
            SATURATING=saturating, FIXED_STD=fixed_std, ROWS=rows,
            LOGIT_BLOCK=min(_LOGIT_BLOCK, triton.next_power_of_2(rows)),
            PAIRS=triton.next_power_of_2(rows * max(len(sizes), 1)), K_BLOCK=k_block, LANES=lanes,
            CATEGORICAL_BLOCK=triton.next_power_of_2(max(len(sizes), 1)),
            CONTINUOUS_BLOCK=triton.next_power_of_2(max(n_continuous, 1)),
            PARTIAL_ROWS=triton.next_power_of_2(programs),
            num_warps=warps, maxnreg=_MAX_REGISTERS,
        )  # fmt: skip
    return statistics, real_gradient, fake_gradient, recognition_gradient
