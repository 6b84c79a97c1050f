// sample_latents on the CPU: a few rows of Philox words at a time, then each row written straight into z.
#include "cpu_kernels.h"
#include "philox.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

// Philox calls of one block of rows: 16 KB of words, in the first-level cache with the rows of z that they become.
constexpr int64_t BLOCK_CALLS = 1024;

int64_t groups_of(const SampleLatents& op) { return (op.layout.noise + op.layout.n_codes + 3) / 4; }

int64_t rows_per_block(const SampleLatents& op) { return larger<int64_t>(1, BLOCK_CALLS / groups_of(op)); }

int64_t scratch_per_thread(const SampleLatents& op) { return 6 * rows_per_block(op) * groups_of(op); }

int threads_for(const SampleLatents& op) {
    return useful_threads(op.threads, chunks_of(op.rows), op.rows * groups_of(op) * 4);
}

struct Rows {
    const SampleLatents& op;
    Stream stream;
    int64_t groups;  // Philox calls per row

    // words[row][draw] of `count` rows from `first`. Rows and groups are one flat loop, so that the vectors are full
    // however few groups a row has.
    void draw(int64_t first, int64_t count, uint32_t* __restrict words, uint32_t* __restrict group,
              uint32_t* __restrict row) const {
        for (int64_t i = 0, r = 0; r < count; ++r)
            for (int64_t g = 0; g < groups; ++g, ++i) {
                group[i] = uint32_t(g);
                row[i] = uint32_t(op.row_offset + first + r);
            }
        const Stream fixed = stream;
#pragma omp simd
        for (int64_t i = 0; i < count * groups; ++i) {
            const Words drawn = philox(fixed, group[i], row[i]);
            words[4 * i] = drawn.w0;
            words[4 * i + 1] = drawn.w1;
            words[4 * i + 2] = drawn.w2;
            words[4 * i + 3] = drawn.w3;
        }
    }

    template <class T>
    void noise(const uint32_t* __restrict words, T* __restrict z) const {
        const int64_t n = op.layout.noise;
        if (!op.layout.noise_normal) {
#pragma omp simd
            for (int64_t d = 0; d < n; ++d) from_float(uniform(words[d]), z[d]);
            return;
        }
#pragma omp simd
        for (int64_t pair = 0; pair < n / 2; ++pair) {
            const Pair drawn = normal_pair(words[2 * pair], words[2 * pair + 1]);
            from_float(drawn.even, z[2 * pair]);
            from_float(drawn.odd, z[2 * pair + 1]);
        }
        if (n & 1) from_float(normal_pair(words[n - 1], words[n]).even, z[n - 1]);
    }

    template <class T>
    void codes(const uint32_t* words, T* __restrict z, int64_t* __restrict categories,
               float* __restrict continuous) const {
        const Layout& layout = op.layout;
        T one;
        from_float(1.0f, one);
        int64_t draw = layout.noise;
        T* one_hots = z + layout.noise;
        for (int64_t column = 0; column < layout.categorical_columns; ++column) one_hots[column] = T{};
        for (int64_t code = 0; code < layout.n_categorical; ++code, ++draw) {
            categories[code] = category(words[draw], uint64_t(layout.sizes[code]));
            one_hots[layout.offsets[code] + categories[code]] = one;
        }
        T* values = one_hots + layout.categorical_columns;
        for (int64_t i = 0; i < layout.n_continuous; ++i, ++draw) {
            float value = uniform(words[draw]);
            if (layout.normal[i]) {
                const Pair drawn = normal_pair(words[draw & ~int64_t(1)], words[draw | 1]);
                value = draw & 1 ? drawn.odd : drawn.even;
            }
            from_float(value, values[i]);
            continuous[i] = to_float(values[i]);  // the target of Q is what G saw
        }
    }

    template <class T>
    void run(T* z, int64_t first, int64_t last, uint32_t* words) const {
        const Layout& layout = op.layout;
        const int64_t per_block = rows_per_block(op);
        uint32_t* group = words + 4 * per_block * groups;
        uint32_t* row_of_call = group + per_block * groups;
        for (int64_t block = first; block < last; block += per_block) {
            const int64_t count = smaller(per_block, last - block);
            draw(block, count, words, group, row_of_call);
            for (int64_t r = 0; r < count; ++r) {
                const int64_t row = block + r;
                const uint32_t* own = words + r * groups * 4;
                noise(own, z + row * layout.dim);
                codes(own, z + row * layout.dim, op.categories + row * layout.n_categorical,
                      op.continuous + row * layout.n_continuous);
            }
        }
    }
};

}  // namespace

int64_t sample_latents_scratch(const SampleLatents& op) noexcept { return threads_for(op) * scratch_per_thread(op); }

void sample_latents(const SampleLatents& op) noexcept {
    const Rows rows{op, stream_of(op.seed, op.step, op.stream), groups_of(op)};
    parallel_chunks(threads_for(op), chunks_of(op.rows), [&](int64_t chunk, int thread) {
        const int64_t first = chunk * CHUNK_ROWS;
        with_storage(op.dtype, [&](auto* storage) {
            using T = std::remove_pointer_t<decltype(storage)>;
            rows.run(static_cast<T*>(op.z), first, smaller(op.rows, first + CHUNK_ROWS),
                     op.scratch + thread * scratch_per_thread(op));
        });
    });
}

}  // namespace FIG_ISA
}  // namespace fig
