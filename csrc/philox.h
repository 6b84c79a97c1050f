// The one stream of random bits: Philox4x32-10 (Salmon et al., SC 2011) and what its words become.
//
// Counter: (group of four draws, global row, low word of the step, stream << 24 | bits 32..55 of the step); draw d is
// word d % 4 of group d / 4. fastinfogan/ops/philox.py is the same in PyTorch.
#pragma once

#include <math.h>

#include "arithmetic.h"

namespace fig {
inline namespace FIG_ISA {

struct Words {
    uint32_t w0, w1, w2, w3;
};

// What all draws of one call share: the key, and the two counter words that hold step and stream.
struct Stream {
    uint32_t key0, key1, step_low, step_high;
};

FIG_HD Stream stream_of(uint64_t seed, uint64_t step, uint32_t stream) {
    return {uint32_t(seed), uint32_t(seed >> 32), uint32_t(step), (uint32_t(step >> 32) & 0xffffffu) | stream << 24};
}

FIG_HD Words philox(const Stream& stream, uint32_t group, uint32_t row) {
    uint32_t c0 = group, c1 = row, c2 = stream.step_low, c3 = stream.step_high;
    uint32_t key0 = stream.key0, key1 = stream.key1;
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t(c0) * 0xD2511F53u;
        const uint64_t product1 = uint64_t(c2) * 0xCD9E8D57u;
        c0 = uint32_t(product1 >> 32) ^ c1 ^ key0;
        c2 = uint32_t(product0 >> 32) ^ c3 ^ key1;
        c1 = uint32_t(product1);
        c3 = uint32_t(product0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

// 24 bits as a float in [0, 1), exactly; through int32, for which every instruction set has a conversion.
FIG_HD float fraction(uint32_t word) { return float(int32_t(word >> 8)) * 0x1p-24f; }

// U(-1, 1), exactly: a multiple of 2^-23.
FIG_HD float uniform(uint32_t word) { return 2.0f * fraction(word) - 1.0f; }

// 0 .. k-1, equally likely up to 2^-32 * k.
FIG_HD int64_t category(uint32_t word, uint64_t k) { return int64_t(uint64_t(word) * k >> 32); }

struct Pair {
    float even, odd;
};

// Box-Muller: two words give two independent N(0, 1). The first fraction is in (0, 1], so that its logarithm is
// finite; the angle is rounded to fp32 before the sine, as the reference rounds it: at a radius of 5.7 an angle in
// turns would differ by more than 1e-6.
FIG_HD Pair normal_pair(uint32_t even_word, uint32_t odd_word) {
    const float radius = sqrtf(-2.0f * logarithm(float(int32_t((even_word >> 8) + 1u)) * 0x1p-24f));
    const SineCosine direction = sine_cosine(6.28318530717958647692f * fraction(odd_word));
    return {radius * direction.cosine, radius * direction.sine};
}

}  // namespace FIG_ISA
}  // namespace fig
