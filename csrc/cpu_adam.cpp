// Adam over a list of tensors in one pass, which also refreshes the bfloat16 copy of the weights that the networks use.
//
// 24 bytes of state are read and written per weight, the gradient is read in the format in which it was computed, and
// the copy is written while the weight is in a register: no pass over the weights remains besides the matrix products.
//
// m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;  w -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
#include <math.h>

#include "cpu_kernels.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

constexpr int64_t BLOCK = 8192;  // of each of six arrays: 200 kB, within a core's second-level cache

struct Rates {
    float toward_gradient, beta2, toward_square, step_size, root_correction, eps;
};

template <class T>
FIG_OWN_FUNCTION void update(int64_t count, const Rates& rates, float* __restrict weight, const T* __restrict gradient,
            float* __restrict first, float* __restrict second) {
    const Rates rate = rates;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const float g = to_float(gradient[i]);
        const float m = first[i] + rate.toward_gradient * (g - first[i]);
        const float v = rate.beta2 * second[i] + rate.toward_square * g * g;
        first[i] = m;
        second[i] = v;
        weight[i] -= rate.step_size * m / (sqrtf(v) / rate.root_correction + rate.eps);
    }
}

FIG_OWN_FUNCTION void copy(int64_t count, const float* __restrict weight, Bfloat16* __restrict target) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) from_float(weight[i], target[i]);
}

}  // namespace

void adam(const Adam& op) noexcept {
    for (int64_t tensor = 0; tensor < op.n_tensors; ++tensor) {
        const double t = double(*op.steps[tensor] += 1.0f);
        const Rates rates{float(1.0 - op.beta1),
                          float(op.beta2),
                          float(1.0 - op.beta2),
                          float(op.learning_rate / (1.0 - pow(op.beta1, t))),
                          float(sqrt(1.0 - pow(op.beta2, t))),
                          float(op.eps)};
        const int64_t size = op.sizes[tensor], blocks = (size + BLOCK - 1) / BLOCK;
        parallel_chunks(useful_threads(op.threads, blocks, size), blocks, [&](int64_t block, int) {
            const int64_t first = block * BLOCK, count = smaller(BLOCK, size - first);
            float* weight = op.weights[tensor] + first;
            with_storage(op.gradient_dtypes[tensor], [&](auto* storage) {
                using T = std::remove_pointer_t<decltype(storage)>;
                update(count, rates, weight, static_cast<const T*>(op.gradients[tensor]) + first,
                       op.first_moments[tensor] + first, op.second_moments[tensor] + first);
            });
            if (op.copies[tensor]) copy(count, weight, reinterpret_cast<Bfloat16*>(op.copies[tensor]) + first);
        });
    }
}

}  // namespace FIG_ISA
}  // namespace fig
