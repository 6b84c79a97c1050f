"""Functions of one real number, free of branches, in fp32 and accurate to a few units in the last place.

``tl.log``, ``tl.sin`` and ``tl.cos`` compile to library calls with slow paths for arguments that never occur here, and
the interpreter has no inline assembly. These polynomials are the same arithmetic on every device.
"""

import triton
import triton.language as tl

_LN2 = tl.constexpr(0.6931471805599453)
# ln 2 in two parts: the first has 10 bits, so a small integer times it is exact.
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440054690583e-4)
# pi / 2 in three parts (Cody and Waite): a quadrant number times the first two is exact.
_HALF_PI_HIGH = tl.constexpr(1.5703125)
_HALF_PI_MIDDLE = tl.constexpr(4.837512969970703125e-4)
_HALF_PI_LOW = tl.constexpr(7.54978995489188216e-8)
_TWO_OVER_PI = tl.constexpr(0.6366197723675814)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)


@triton.jit
def log_of_sum(total):
    """ln of a sum of exponentials whose largest is 1: 1 <= total, where lg2's absolute error of 2^-22 is enough."""
    return tl.log2(total) * _LN2


@triton.jit
def log1p_unit(t):
    """ln(1 + t) for 0 <= t <= 1, with small relative error however small t is: 2 artanh(t / (2 + t))."""
    s = t / (2.0 + t)
    z = s * s
    series = 1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13))))))
    return 2.0 * s * series


@triton.jit
def softplus_and_sigmoid(x):
    """softplus(x) = ln(1 + e^x) and its derivative, from one exponential that cannot overflow.

    max(x, 0) + log1p(e^-|x|) keeps relative precision where ln(1 + e^-|x|) rounds to zero.
    """
    t = tl.exp(-tl.abs(x))
    softplus = tl.maximum(x, 0.0) + log1p_unit(t)
    sigmoid = tl.where(x >= 0, 1.0, t) / (1.0 + t)
    return softplus, sigmoid


@triton.jit
def log_of_24_bits(n):
    """ln(n * 2^-24) for an int32 n, 1 <= n <= 2^24, with small relative error also where it goes to zero."""
    bits = n.to(tl.float32).to(tl.int32, bitcast=True)
    # n = 2^exponent * mantissa with mantissa in [sqrt(1/2), sqrt(2)): near n = 2^24 nothing cancels.
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    series = 1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9))))
    e = (exponent - 24).to(tl.float32)
    return e * _LN2_HIGH + (2.0 * s * series + e * _LN2_LOW)


@triton.jit
def sine_and_cosine(angle):
    """sin and cos of 0 <= angle <= 2 pi together (Cephes' polynomials on [-pi/4, pi/4])."""
    quadrant = (angle * _TWO_OVER_PI + 0.5).to(tl.int32)
    q = quadrant.to(tl.float32)
    r = ((angle - q * _HALF_PI_HIGH) - q * _HALF_PI_MIDDLE) - q * _HALF_PI_LOW
    z = r * r
    sine = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    cosine = (1.0 - 0.5 * z) + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    swap = (quadrant & 1) == 1
    s = tl.where(swap, cosine, sine)
    c = tl.where(swap, sine, cosine)
    return tl.where((quadrant & 2) == 2, -s, s), tl.where(((quadrant + 1) & 2) == 2, -c, c)


@triton.jit
def look_up(index, TABLE: tl.constexpr, LENGTH: tl.constexpr):
    """``TABLE[index]`` for a table known at compile time, by selection: no memory is read."""
    value = tl.full(index.shape, TABLE[0], tl.float32 if isinstance(TABLE[0], float) else tl.int32)
    for i in tl.static_range(1, LENGTH):
        value = tl.where(index == i, TABLE[i], value)
    return value
