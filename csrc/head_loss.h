// The joint loss of the D and Q heads: value and gradient of each term, for one row.
//
// Chen et al. 2016, Eq. 1 (the GAN game), Eq. 5 (the variational bound), section 6 (softmax and factored Gaussian).
#pragma once

#include "arithmetic.h"

namespace fig {
inline namespace FIG_ISA {

constexpr float HALF_LOG_2PI = 0.91893853320467274178f;
// At this std the Gaussian's peak density is 1: unbounded, a confident Q drives the likelihood to infinity.
constexpr float LOG_STD_MIN = -HALF_LOG_2PI;

struct Term {
    float value, gradient;
};

// softplus(x) = ln(1 + e^x) and its derivative sigmoid(x).
//
//   1. With t = e^-|x| in (0, 1]: softplus(x) = max(x, 0) + ln(1 + t), and nothing overflows.
//   2. sigmoid(x) = 1 / (1 + t) for x >= 0, t / (1 + t) below: both keep their relative precision.
FIG_HD Term softplus(float x) {
    const float t = exponential(-(x < 0.0f ? -x : x));
    const float share = 1.0f / (1.0f + t);
    return {(x > 0.0f ? x : (x != x ? x : 0.0f)) + log1p_of_unit(t), x < 0.0f ? t * share : share};
}

// Which adversarial loss: outer * softplus(inner * x).
//
//   real rows, D phase        softplus(-x)     inner -1, outer +1
//   fake rows, D phase        softplus(x)      inner +1, outer +1
//   G phase                   softplus(-x)     inner -1, outer +1
//   G phase, saturating      -softplus(x)      inner +1, outer -1
struct Adversarial {
    float inner, outer;
};

FIG_HD Term adversarial(Adversarial kind, float logit) {
    const Term term = softplus(kind.inner * logit);
    return {kind.outer * term.value, kind.outer * kind.inner * term.gradient};
}

struct GaussianTerm {
    float value, mean_gradient, log_std_gradient;
};

// -ln N(c; mean, e^s) with s = max(raw, LOG_STD_MIN), or s = 0 where the std is fixed.
//
//   1. d = (c - mean) e^-s:            value = d^2 / 2 + s + ln(2 pi) / 2
//   2. by the mean:                    -d e^-s
//   3. by s:                           1 - d^2
//   4. below the bound the gradient is kept only where descending it leads back above (1 - d^2 <= 0), so that no unit
//      is stuck; a fixed std has none.
FIG_HD GaussianTerm gaussian(float value, float mean, float raw_log_std, bool fixed_std) {
    const float bounded = raw_log_std < LOG_STD_MIN ? LOG_STD_MIN : raw_log_std;
    const float log_std = fixed_std ? 0.0f : bounded;
    const float inverse_std = exponential(-log_std);
    const float distance = (value - mean) * inverse_std;
    const float square = distance * distance;
    const float slope = 1.0f - square;
    const bool stopped = fixed_std || (raw_log_std < LOG_STD_MIN && slope > 0.0f);
    return {0.5f * square + log_std + HALF_LOG_2PI, -distance * inverse_std, stopped ? 0.0f : slope};
}

}  // namespace FIG_ISA
}  // namespace fig
