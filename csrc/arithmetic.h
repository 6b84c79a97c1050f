// The arithmetic under every op, written once for host and device: storage types and elementary functions.
//
// Each function is branch-free, so that a loop over rows or columns vectorises, and is built from single additions,
// multiplications and divisions (compiled with -ffp-contract=off), so that every CPU gives the same bits whatever its
// vector width. libm would give neither: its calls stop the vectoriser and differ between systems.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define FIG_HD __host__ __device__ inline
#else
#define FIG_HD inline
#endif

// The CPU code is compiled once per instruction set. Everything lies in a namespace of that name: were two builds of
// one inline function to share a symbol, the linker could hand the AVX-512 build to a machine without it.
#if !defined(FIG_ISA)
#define FIG_ISA baseline
#endif

namespace fig {
inline namespace FIG_ISA {

FIG_HD uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

FIG_HD float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
FIG_HD T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
FIG_HD T larger(T a, T b) {
    return a < b ? b : a;
}

// ---------------------------------------------------------------------------------------------- storage types

struct Bfloat16 {
    uint16_t bits;
};

struct Half {
    uint16_t bits;
};

FIG_HD float to_float(float value) { return value; }

FIG_HD float to_float(Bfloat16 value) { return float_of(uint32_t(value.bits) << 16); }

FIG_HD float to_float(Half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
    // 1. Normal numbers: move the exponent from bias 15 to bias 127; inf and NaN land on exponent 255 the same way
    //    after one more step of 112.
    const uint32_t normal = magnitude + (112u << 23) + (magnitude >= (31u << 23) ? 112u << 23 : 0u);
    // 2. Subnormals: place the mantissa under the exponent of 2^-14 and subtract the implicit one again.
    const uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23));
    return float_of(sign | (magnitude < (1u << 23) ? subnormal : normal));
}

// Rounding is to nearest even, as PyTorch rounds.
FIG_HD void from_float(float value, float& stored) { stored = value; }

FIG_HD void from_float(float value, Bfloat16& stored) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    stored.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

FIG_HD void from_float(float value, Half& stored) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // 1. Normal halves: move the exponent and round the 13 lost bits to nearest even; a carry runs into the exponent.
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // 2. Subnormal halves: adding 0.5 makes the float adder itself round at 2^-24, the spacing of subnormal halves.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    // 3. 65520 = 65504 + half a spacing and above is infinity; NaN stays NaN.
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    stored.bits = uint16_t(sign | (magnitude >= 0x477ff000u ? large : finite));
}

// ---------------------------------------------------------------------------------------- elementary functions
// Polynomials: Moshier, Cephes mathematical library (single precision). About 1 ulp each.

// Adding 1.5 * 2^23 pushes the fraction out of a float: the sum's low bits are the nearest integer. Unlike a
// conversion this is defined for NaN, which then comes out of the polynomial as NaN.
constexpr float ROUNDER = 12582912.0f;

// 2^n for -126 <= n <= 127, n given as an unsigned wrap-around.
FIG_HD float power_of_two(uint32_t n) { return float_of((n + 127u) << 23); }

// e^x for every float; above 88.7 infinity, below -104 zero.
FIG_HD float exponential(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float shifted = x * 1.44269504f + ROUNDER;
    const float n = shifted - ROUNDER;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // Two factors, because n reaches from -150 (subnormal results) to 128.
    const uint32_t integer = bits_of(shifted) - bits_of(ROUNDER);
    const uint32_t half = uint32_t(int32_t(integer) >> 1);
    return p * power_of_two(half) * power_of_two(integer - half);
}

// ln x for normal positive x.
FIG_HD float logarithm(float x) {
    // 1. x = 2^e * m with m in [sqrt(1/2), sqrt(2)).
    const uint32_t shifted = bits_of(x) - 0x3f3504f3u;
    const float e = float(int32_t(shifted) >> 23);
    const float m = float_of((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    // 2. ln m by polynomial, e * ln 2 in two parts.
    const float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const float tail = p * m * z + e * -2.12194440e-4f - 0.5f * z;
    return (m + tail) + e * 0.693359375f;
}

// ln(1 + t) for 0 <= t <= 1, relatively exact down to t = 0, where 1 + t would have lost t:
// ln(1 + t) = 2 artanh(s), s = t / (2 + t) <= 1/3; the series is cut below half an ulp.
FIG_HD float log1p_of_unit(float t) {
    const float s = t / (2.0f + t);
    const float z = s * s;
    float p = 1.0f / 15.0f;
    p = p * z + 1.0f / 13.0f;
    p = p * z + 1.0f / 11.0f;
    p = p * z + 1.0f / 9.0f;
    p = p * z + 1.0f / 7.0f;
    p = p * z + 1.0f / 5.0f;
    p = p * z + 1.0f / 3.0f;
    return 2.0f * s + 2.0f * s * (z * p);
}

struct SineCosine {
    float sine, cosine;
};

// Sine and cosine of an angle in [0, 2 pi].
FIG_HD SineCosine sine_cosine(float angle) {
    // 1. angle = quadrant * pi/2 + r, |r| <= pi/4; pi/2 in three parts, whose products with quadrant are exact.
    const float shifted = angle * 0.636619772f + ROUNDER;
    const uint32_t quadrant = bits_of(shifted) - bits_of(ROUNDER);
    const float n = shifted - ROUNDER;
    const float r = ((angle - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.54978995489188216e-8f;
    // 2. Both polynomials on [-pi/4, pi/4].
    const float z = r * r;
    const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    const float c =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
    // 3. An odd quadrant exchanges them; the signs follow the quadrant.
    const uint32_t swapped = quadrant & 1u;
    const uint32_t sine_sign = (quadrant & 2u) << 30;
    const uint32_t cosine_sign = ((quadrant + 1u) & 2u) << 30;
    return {float_of(bits_of(swapped ? c : s) ^ sine_sign), float_of(bits_of(swapped ? s : c) ^ cosine_sign)};
}

}  // namespace FIG_ISA
}  // namespace fig
