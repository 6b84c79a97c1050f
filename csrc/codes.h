// Codes in packed form: the arithmetic of pack_codes, unpack_codes and recognize that host and device share.
#pragma once

#include "arithmetic.h"
#include "head_loss.h"

namespace fig {
inline namespace FIG_ISA {

// Whether `value` comes before the `best` so far when looking for the lowest index of the largest value; as in
// torch.argmax a NaN is larger than every number.
FIG_HD bool beats(float value, float best) { return value > best || (value != value && best == best); }

FIG_HD float standard_deviation(float log_std) {
    return exponential(log_std < LOG_STD_MIN ? LOG_STD_MIN : log_std);
}

struct Recognized {
    int64_t category;
    float confidence;
};

// The likeliest category of one row and its softmax probability, 1 / sum exp(l_k - max).
template <class T>
FIG_HD Recognized recognize_code(const T* logits, int64_t k) {
    int64_t category = 0;
    float largest = to_float(logits[0]);
    for (int64_t column = 1; column < k; ++column) {
        const float logit = to_float(logits[column]);
        if (beats(logit, largest)) {
            largest = logit;
            category = column;
        }
    }
    float total = 0.0f;
    for (int64_t column = 0; column < k; ++column) total += exponential(to_float(logits[column]) - largest);
    return {category, 1.0f / total};
}

template <class T>
FIG_HD int64_t hot_column(const T* one_hot, int64_t k) {
    int64_t category = 0;
    for (int64_t column = 1; column < k; ++column)
        if (beats(to_float(one_hot[column]), to_float(one_hot[category]))) category = column;
    return category;
}

}  // namespace FIG_ISA
}  // namespace fig
