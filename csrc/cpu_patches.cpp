// The 4x4 patches of an image as the rows of a matrix, and the sum of such rows back into an image.
//
// With them a convolution of either direction is one matrix product, which the CPU's library runs at several times the
// rate of its own convolutions: patches before the product for a convolution, fold behind it for a transposed one.
// Both only move bytes. Images are channels-last, so the four values of a patch's line are one run of 4 * channels.
#include "cpu_kernels.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

constexpr int64_t KERNEL = 4;

// Elements are copied, never computed with, so only their size matters.
template <class T>
FIG_OWN_FUNCTION void patches_of_line(const Patches& op, int64_t image, int64_t small_y, const T* __restrict source,
                     T* __restrict target) {
    const int64_t run = KERNEL * op.channels;
    for (int64_t small_x = 0; small_x < op.small_width; ++small_x) {
        const int64_t x = small_x * op.stride - op.before;
        const int64_t first = larger<int64_t>(0, -x), last = smaller(KERNEL, op.width - x);  // columns inside
        for (int64_t ky = 0; ky < KERNEL; ++ky, target += run) {
            const int64_t y = small_y * op.stride - op.before + ky;
            if (y < 0 || y >= op.height || last <= first) {
                memset(target, 0, size_t(run) * sizeof(T));
                continue;
            }
            const T* line = source + ((image * op.height + y) * op.width + x) * op.channels;
            if (first == 0 && last == KERNEL) {
                if (op.channels == 1)  // a call would cost more than the four values
                    memcpy(target, line, KERNEL * sizeof(T));
                else
                    memcpy(target, line, size_t(run) * sizeof(T));
                continue;
            }
            memset(target, 0, size_t(first * op.channels) * sizeof(T));
            memcpy(target + first * op.channels, line + first * op.channels,
                   size_t((last - first) * op.channels) * sizeof(T));
            memset(target + last * op.channels, 0, size_t((KERNEL - last) * op.channels) * sizeof(T));
        }
    }
}

// Along one axis, the places of the kernel that cover position `at` of the large image: kernel index and small index.
struct Taps {
    int64_t kernel[KERNEL], small[KERNEL];
    int n = 0;
    Taps(int64_t at, int64_t before, int64_t stride, int64_t small_size) {
        const int64_t last = at + before;  // of kernel index 0
        for (int64_t k = stride == 2 ? last & 1 : 0; k < KERNEL; k += stride) {
            const int64_t index = stride == 2 ? (last - k) >> 1 : last - k;
            if (index < 0 || index >= small_size) continue;
            kernel[n] = k;
            small[n++] = index;
        }
    }
};

// Every value of the image gathers its up to (4 / stride)^2 terms in fp32 and is rounded once.
template <class T>
FIG_OWN_FUNCTION void fold_line(const Patches& op, int64_t image, int64_t y, const T* __restrict source,
                                T* __restrict target) {
    const int64_t channels = op.channels, row = KERNEL * KERNEL * channels;
    const Taps down(y, op.before, op.stride, op.small_height);
    for (int64_t x = 0; x < op.width; ++x, target += channels) {
        const Taps across(x, op.before, op.stride, op.small_width);
        const T* terms[KERNEL * KERNEL];
        int n_terms = 0;
        for (int i = 0; i < down.n; ++i)
            for (int j = 0; j < across.n; ++j)
                terms[n_terms++] =
                    source + ((image * op.small_height + down.small[i]) * op.small_width + across.small[j]) * row +
                    (down.kernel[i] * KERNEL + across.kernel[j]) * channels;
        if (n_terms == 4 && channels >= 16) {  // the inside of an image at stride 2
            const T *a = terms[0], *b = terms[1], *c = terms[2], *d = terms[3];
#pragma omp simd
            for (int64_t channel = 0; channel < channels; ++channel)
                from_float(((to_float(a[channel]) + to_float(b[channel])) + to_float(c[channel])) +
                               to_float(d[channel]),
                           target[channel]);
            continue;
        }
        for (int64_t channel = 0; channel < channels; ++channel) {
            float sum = 0.0f;
            for (int term = 0; term < n_terms; ++term) sum += to_float(terms[term][channel]);
            from_float(sum, target[channel]);
        }
    }
}

int threads_for(const Patches& op) {
    const int64_t values = op.n * op.small_height * op.small_width * KERNEL * KERNEL * op.channels;
    return useful_threads(op.threads, op.n, values);
}

}  // namespace

void patches(const Patches& op) noexcept {
    parallel_chunks(threads_for(op), op.n, [&](int64_t image, int) {
        with_storage(op.dtype, [&](auto* storage) {
            using T = std::remove_pointer_t<decltype(storage)>;
            const int64_t line = op.small_width * KERNEL * KERNEL * op.channels;
            for (int64_t y = 0; y < op.small_height; ++y)
                patches_of_line(op, image, y, static_cast<const T*>(op.source),
                                static_cast<T*>(op.target) + (image * op.small_height + y) * line);
        });
    });
}

void fold(const Patches& op) noexcept {
    parallel_chunks(threads_for(op), op.n, [&](int64_t image, int) {
        with_storage(op.dtype, [&](auto* storage) {
            using T = std::remove_pointer_t<decltype(storage)>;
            for (int64_t y = 0; y < op.height; ++y)
                fold_line(op, image, y, static_cast<const T*>(op.source),
                          static_cast<T*>(op.target) + (image * op.height + y) * op.width * op.channels);
        });
    });
}

}  // namespace FIG_ISA
}  // namespace fig
