"""The stream of random bits on the device: Philox4x32-10 (Salmon et al., SC 2011) on the contract's counter.

Counter: (group of four draws, global row, low word of the step, stream << 24 | bits 32..55 of the step); key: the
64-bit seed. Seed and step are read from device memory, so that a captured graph draws anew at each replay. The full
64 bits count: with a step cut to 32 bits, steps 5 and 2^32 + 5 would draw the same latents.
"""

import triton
import triton.language as tl
from fastinfogan.kernels.elementary import log_of_24_bits, sine_and_cosine

_TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def words_of(group, row, seed_ptr, step_ptr, stream):
    """The four 32-bit words of each ``(group, row)``, blocks of one shape or scalars, as uint32."""
    seed = tl.load(seed_ptr)
    step = tl.load(step_ptr)
    low = (step & 0xFFFFFFFF).to(tl.uint32)
    high = ((step >> 32) & 0xFFFFFF).to(tl.uint32) | (stream.to(tl.uint32) << 24)
    group = group.to(tl.uint32)
    return tl.philox(seed, group, row.to(tl.uint32), group * 0 + low, group * 0 + high)


@triton.jit
def uniform(word):
    """U[-1, 1): 2 * (w >> 8) * 2^-24 - 1, every step of which is exact in fp32."""
    return (word >> 8).to(tl.int32).to(tl.float32) * (2.0**-23) - 1.0


@triton.jit
def normal_pair(word_even, word_odd):
    """Two N(0, 1) by Box-Muller: the even draw takes the cosine, the odd one the sine.

    The angle is rounded as the reference rounds it: one part in 2^24 of 2 pi at a radius of 5.7 is more than 1e-6.
    """
    radius = tl.sqrt(-2.0 * log_of_24_bits(((word_even >> 8) + 1).to(tl.int32)))
    angle = _TWO_PI * ((word_odd >> 8).to(tl.int32).to(tl.float32) * (2.0**-24))
    sine, cosine = sine_and_cosine(angle)
    return radius * cosine, radius * sine
