// What the CPU kernels share: threads, tiles, dispatch on the storage type. Included only by files that are compiled
// once per instruction set, so all of it lies in the namespace of that set.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <type_traits>

#include "arithmetic.h"
#include "cpu_ops.h"

namespace fig {
inline namespace FIG_ISA {

int64_t sample_latents_scratch(const SampleLatents&) noexcept;
void sample_latents(const SampleLatents&) noexcept;
int64_t head_loss_scratch(const HeadLoss&) noexcept;
OutOfRange head_loss(const HeadLoss&) noexcept;
int64_t image_batch_scratch(const ImageBatch&) noexcept;
OutOfRange image_batch(const ImageBatch&) noexcept;
OutOfRange pack_codes(const PackCodes&) noexcept;
void unpack_codes(const UnpackCodes&) noexcept;
void recognize(const Recognize&) noexcept;
void patches(const Patches&) noexcept;
void fold(const Patches&) noexcept;
void transpose(const Transpose&) noexcept;
int64_t norm_act_scratch(const NormAct&) noexcept;
void norm_act(const NormAct&) noexcept;
void norm_act_backward(const NormActBackward&) noexcept;
void adam(const Adam&) noexcept;

// Work is cut into chunks of a fixed number of rows: sums are taken within a chunk and then over chunks in order, so a
// result does not depend on how many threads there are.
constexpr int64_t CHUNK_ROWS = 64;

// Rows are processed 16 at a time, one per lane: codes are narrow (K = 10), so vectors along a row would be mostly
// masked and would end in horizontal sums. 16 floats fill an AVX-512 register, two AVX2 or four SSE / NEON ones.
constexpr int64_t LANES = 16;

inline int64_t chunks_of(int64_t rows) { return (rows + CHUNK_ROWS - 1) / CHUNK_ROWS; }

// Below this many elements waking another thread costs more than it saves (about 5 microseconds).
constexpr int64_t ELEMENTS_PER_THREAD = 16384;

inline int useful_threads(int threads, int64_t tasks, int64_t elements) {
#if !defined(_OPENMP)
    threads = 1;
#endif
    const int64_t useful = smaller(tasks, 1 + elements / ELEMENTS_PER_THREAD);
    return int(larger<int64_t>(1, smaller<int64_t>(threads, useful)));
}

template <class Body>
inline void parallel_chunks(int threads, int64_t n_chunks, const Body& body) {
    if (threads == 1) {  // not even the entry into an OpenMP region
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(chunk, 0);
        return;
    }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(chunk, omp_get_thread_num());
#endif
}

// For the passes over memory within parallel_chunks, on plain pointers: inlined into the function that the compiler makes
// of a parallel region, they are not vectorised, which cost norm_act a factor of ten.
#if defined(__GNUC__)
#define FIG_OWN_FUNCTION __attribute__((noinline))
#else
#define FIG_OWN_FUNCTION
#endif

// Calls body with a null pointer of the storage type: C++17 has no template lambdas.
template <class Body>
inline void with_storage(Dtype dtype, const Body& body) {
    switch (dtype) {
        case Dtype::float32: return body(static_cast<float*>(nullptr));
        case Dtype::bfloat16: return body(static_cast<Bfloat16*>(nullptr));
        case Dtype::float16: return body(static_cast<Half*>(nullptr));
    }
}

// tile[column][lane] = source[lane][column] for `valid` rows; the other lanes become 0.
template <class T>
inline void load_tile(const T* __restrict source, int64_t stride, int64_t columns, int64_t valid,
                      float* __restrict tile) {
    if (valid == LANES) {
        for (int64_t column = 0; column < columns; ++column)
#pragma omp simd
            for (int64_t lane = 0; lane < LANES; ++lane)
                tile[column * LANES + lane] = to_float(source[lane * stride + column]);
        return;
    }
    for (int64_t column = 0; column < columns; ++column)
        for (int64_t lane = 0; lane < LANES; ++lane)
            tile[column * LANES + lane] = lane < valid ? to_float(source[lane * stride + column]) : 0.0f;
}

template <class T>
inline void store_tile(const float* __restrict tile, int64_t columns, int64_t valid, T* __restrict target,
                       int64_t stride) {
    for (int64_t lane = 0; lane < valid; ++lane)
        for (int64_t column = 0; column < columns; ++column)
            from_float(tile[column * LANES + lane], target[lane * stride + column]);
}

}  // namespace FIG_ISA
}  // namespace fig
