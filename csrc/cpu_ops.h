// What the bindings ask of the CPU code: one table of functions per instruction set, all with the same bits.
//
// Nothing here is compiled for an instruction set, so the bindings may include it. Sizes and strides are int64 and
// count elements; pointers may have any alignment that their type allows. Every function is noexcept, because it runs
// in part on OpenMP's threads; so the caller allocates, as many elements of `scratch` as X_scratch says.
#pragma once

#include <stdint.h>

namespace fig {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Where the codes lie. Plain pointers, owned by the bindings: a std::vector's member functions are inline symbols that
// the linker could take from the AVX-512 build.
struct Layout {
    int64_t noise;
    bool noise_normal;
    int64_t n_categorical, n_continuous;
    const int64_t* sizes;       // K of each categorical code
    const int64_t* offsets;     // its first column, counted from the first categorical column
    const uint8_t* normal;      // of each continuous value: N(0, 1) instead of U(-1, 1)
    const double* entropies;    // of each code in nats
    int64_t categorical_columns;
    int64_t widest;             // the largest K, at least 1
    int64_t n_codes;            // n_categorical + n_continuous
    int64_t dim;                // columns of the generator's input
    int64_t head_dim;           // columns of the recognition head's output
};

struct Strided {
    bool present;  // an empty tensor is present although its pointer is null
    const void* pointer;
    Dtype dtype;
    int64_t rows;
    int64_t stride;
};

// The first value that is out of range, in row order; row is -1 where there is none.
struct OutOfRange {
    int64_t row = -1;
    int64_t column = 0;
    int64_t value = 0;
};

struct SampleLatents {
    const Layout& layout;
    uint64_t seed, step;
    uint32_t stream;
    int64_t row_offset, rows;
    Dtype dtype;
    void* z;
    int64_t* categories;
    float* continuous;
    int threads;
    uint32_t* scratch;
};

struct HeadLoss {
    const Layout& layout;
    Strided fake, real, recognition;
    const int64_t* categories;
    const float* continuous;
    const float* weights;     // null: all 1
    const float* loss_scale;  // null: 1
    bool saturating, fixed_std;
    float* statistics;
    void *real_gradient, *fake_gradient, *recognition_gradient;
    int threads;
    double* scratch;  // for the partial sums and the tiles
};

struct ImageBatch {
    const uint8_t* images;
    int64_t n_images, height, width, channels;
    const int64_t* index;
    int64_t rows, row_offset;
    float scale, low;
    const uint64_t* flip_seed;  // null: never mirror
    uint64_t step;
    uint32_t stream;
    Dtype dtype;
    void* batch;
    int threads;
    uint8_t* scratch;  // one line of an image per thread
};

struct PackCodes {
    const Layout& layout;
    Strided noise;
    const int64_t* categories;
    Strided continuous;
    int64_t rows;
    Dtype dtype;
    void* z;
    // A traversal packs each row n_values times, with the value in place of code number `code`; 1 value and code -1
    // pack the rows as they are.
    int64_t code;
    const float* values;
    int64_t n_values;
    int threads;
};

struct UnpackCodes {
    const Layout& layout;
    Strided z;
    int64_t* categories;
    int threads;
};

struct Recognize {
    const Layout& layout;
    Strided recognition;
    int64_t* categories;
    float *confidence, *mean, *std;
    int threads;
};

// The geometry of a 4x4 convolution between a large image [n, height, width, channels] and a small one.
struct Patches {
    int64_t n, height, width, channels;  // of the large image
    int64_t small_height, small_width;
    int64_t stride;
    int64_t before;  // rows and columns of padding above and to the left
    Dtype dtype;
    const void* source;
    void* target;
    int threads;
};

// [rows, columns] to [columns, rows], both contiguous.
struct Transpose {
    int64_t rows, columns;
    const uint16_t* source;
    uint16_t* target;
    int threads;
};

// Matrices of [groups * rows, columns], contiguous. Without `normalise`, bias and activation alone.
struct NormAct {
    int64_t groups, rows, columns;
    bool normalise;
    float eps, slope;
    Dtype dtype;
    const void* x;
    const float *gain, *bias;
    void* y;
    float *mean, *variance;  // [groups, columns]
    int threads;
    float* scratch;
};

struct NormActBackward {
    NormAct forward;
    const void* y_gradient;
    void* x_gradient;
    float *gain_gradient, *bias_gradient;  // [columns]
};

struct Adam {
    int64_t n_tensors;
    const int64_t* sizes;
    float* const* weights;
    const void* const* gradients;
    const Dtype* gradient_dtypes;
    float *const *first_moments, *const *second_moments;
    uint16_t* const* copies;  // bfloat16 copies of the weights; a null pointer where there is none
    float* const* steps;      // of each weight its own, as one may have learnt longer than another; counted up here
    double learning_rate, beta1, beta2, eps;
    int threads;
};

struct CpuOps {
    const char* isa;
    int64_t (*sample_latents_scratch)(const SampleLatents&) noexcept;
    void (*sample_latents)(const SampleLatents&) noexcept;
    int64_t (*head_loss_scratch)(const HeadLoss&) noexcept;
    OutOfRange (*head_loss)(const HeadLoss&) noexcept;
    int64_t (*image_batch_scratch)(const ImageBatch&) noexcept;
    OutOfRange (*image_batch)(const ImageBatch&) noexcept;
    OutOfRange (*pack_codes)(const PackCodes&) noexcept;
    void (*unpack_codes)(const UnpackCodes&) noexcept;
    void (*recognize)(const Recognize&) noexcept;
    void (*patches)(const Patches&) noexcept;
    void (*fold)(const Patches&) noexcept;
    void (*transpose)(const Transpose&) noexcept;
    int64_t (*norm_act_scratch)(const NormAct&) noexcept;
    void (*norm_act)(const NormAct&) noexcept;
    void (*norm_act_backward)(const NormActBackward&) noexcept;
    void (*adam)(const Adam&) noexcept;
};

extern const CpuOps cpu_ops_baseline;
#if defined(FIG_X86)
extern const CpuOps cpu_ops_avx2;
extern const CpuOps cpu_ops_avx512;
#endif

}  // namespace fig
