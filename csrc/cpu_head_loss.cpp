// head_loss on the CPU: one pass over each of the three inputs writes every loss term and every gradient.
#include "cpu_kernels.h"
#include "head_loss.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

constexpr int64_t REAL = 0, FAKE = 1, FIRST_CODE = 2;  // columns of the partial sums

int64_t n_terms(const HeadLoss& op) { return FIRST_CODE + op.layout.n_codes; }

int64_t n_chunks(const HeadLoss& op) { return chunks_of(larger(op.fake.rows, op.real.rows)); }

int64_t elements(const HeadLoss& op) {
    const int64_t per_fake_row = 1 + (op.recognition.present ? op.layout.head_dim : 0);
    return op.real.rows + op.fake.rows * per_fake_row;
}

int threads_for(const HeadLoss& op) { return useful_threads(op.threads, n_chunks(op), elements(op)); }

// Doubles of scratch per thread: one sum per code and lane, then the tile of one code, which is of floats.
int64_t tile_columns(const HeadLoss& op) { return larger(op.layout.widest, 2 * op.layout.n_continuous); }

int64_t scratch_per_thread(const HeadLoss& op) {
    return LANES * op.layout.n_codes + LANES * tile_columns(op) / 2;
}

// Adds lanes pairwise, in an order that no compiler option changes.
double sum_of_lanes(const double* lanes) {
    double sums[LANES];
    for (int64_t i = 0; i < LANES; ++i) sums[i] = lanes[i];
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// The sum of an adversarial term over one chunk of logits; writes their gradients times `factor`.
template <class T>
double adversarial_chunk(const T* __restrict logits, int64_t stride, int64_t count, Adversarial kind, float factor,
                         T* __restrict gradient) {
    double lanes[LANES] = {};
    for (int64_t first = 0; first < count; first += LANES) {
        const int64_t valid = smaller(LANES, count - first);
        float values[LANES] = {}, gradients[LANES];
        for (int64_t lane = 0; lane < valid; ++lane) values[lane] = to_float(logits[(first + lane) * stride]);
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; ++lane) {
            const Term term = adversarial(kind, values[lane]);
            lanes[lane] += lane < valid ? double(term.value) : 0.0;
            gradients[lane] = term.gradient * factor;
        }
        for (int64_t lane = 0; lane < valid; ++lane) from_float(gradients[lane], gradient[first + lane]);
    }
    return sum_of_lanes(lanes);
}

// -ln softmax(logits)[target] and its gradient times `factor`, in place, for one tile of one categorical code.
//
//   1. e_k = exp(l_k - max), S = sum e_k: the largest e is 1, so nothing overflows and S >= 1.
//   2. -ln softmax(l)[c] = ln S - (l_c - max).
//   3. By l_k: e_k / S - [k = c].
// The target is compared, not indexed with: an index out of range cannot leave the tile.
void cross_entropy_tile(float* __restrict tile, int64_t k, const int32_t* __restrict target, float factor,
                        int64_t valid, double* __restrict sums) {
    float largest[LANES], total[LANES] = {}, picked[LANES] = {}, share[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) largest[lane] = tile[lane];
    for (int64_t column = 1; column < k; ++column)
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; ++lane) largest[lane] = larger(largest[lane], tile[column * LANES + lane]);
    for (int64_t column = 0; column < k; ++column)
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; ++lane) {
            const float below = tile[column * LANES + lane] - largest[lane];
            const float e = exponential(below);
            picked[lane] = int32_t(column) == target[lane] ? below : picked[lane];
            total[lane] += e;
            tile[column * LANES + lane] = e;
        }
#pragma omp simd
    for (int64_t lane = 0; lane < LANES; ++lane) {
        // The logarithm is for numbers alone: what is none is put back, and a number gets an exact 0.
        const float log_total = logarithm(total[lane]) + (total[lane] - total[lane]);
        sums[lane] += lane < valid ? double(log_total - picked[lane]) : 0.0;
        share[lane] = 1.0f / total[lane];
    }
    for (int64_t column = 0; column < k; ++column)
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; ++lane) {
            const float hot = int32_t(column) == target[lane] ? 1.0f : 0.0f;
            tile[column * LANES + lane] = factor * (tile[column * LANES + lane] * share[lane] - hot);
        }
}

struct CodeRows {
    const HeadLoss& op;
    int64_t first_row, rows;  // of this chunk
    float scale_over_rows;    // loss scale / rows of the batch
    float* tile;
    double* sums;             // [code][lane]
    OutOfRange wrong;

    float factor(int64_t code) const { return (op.weights ? op.weights[code] : 1.0f) * scale_over_rows; }

    template <class T>
    void run(const T* recognition, T* gradient) {
        for (int64_t row = 0; row < rows; row += LANES) {
            const int64_t valid = smaller(LANES, rows - row);
            const T* source = recognition + (first_row + row) * op.recognition.stride;
            T* target = gradient + (first_row + row) * op.layout.head_dim;
            for (int64_t code = 0; code < op.layout.n_categorical; ++code)
                categorical(source, target, code, first_row + row, valid);
            if (op.layout.n_continuous) continuous(source, target, first_row + row, valid);
        }
    }

    template <class T>
    void categorical(const T* source, T* target, int64_t code, int64_t row, int64_t valid) {
        const Layout& layout = op.layout;
        const int64_t k = layout.sizes[code];
        int32_t category[LANES] = {};
        for (int64_t lane = 0; lane < valid; ++lane) {
            const int64_t value = op.categories[(row + lane) * layout.n_categorical + code];
            if ((value < 0 || value >= k) && (wrong.row < 0 || row + lane < wrong.row)) wrong = {row + lane, code, value};
            category[lane] = int32_t(value);
        }
        load_tile(source + layout.offsets[code], op.recognition.stride, k, valid, tile);
        cross_entropy_tile(tile, k, category, factor(code), valid, sums + code * LANES);
        store_tile(tile, k, valid, target + layout.offsets[code], layout.head_dim);
    }

    template <class T>
    void continuous(const T* source, T* target, int64_t row, int64_t valid) {
        const Layout& layout = op.layout;
        const int64_t n = layout.n_continuous;
        load_tile(source + layout.categorical_columns, op.recognition.stride, 2 * n, valid, tile);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t code = layout.n_categorical + i;
            const float weight = factor(code);
            const bool fixed_std = op.fixed_std;
            float* __restrict mean = tile + i * LANES;
            float* __restrict log_std = tile + (n + i) * LANES;
            double* __restrict sum = sums + code * LANES;
            float value[LANES] = {};
            for (int64_t lane = 0; lane < valid; ++lane) value[lane] = op.continuous[(row + lane) * n + i];
#pragma omp simd
            for (int64_t lane = 0; lane < LANES; ++lane) {
                const GaussianTerm term = gaussian(value[lane], mean[lane], log_std[lane], fixed_std);
                sum[lane] += lane < valid ? double(term.value) : 0.0;
                mean[lane] = weight * term.mean_gradient;
                log_std[lane] = weight * term.log_std_gradient;
            }
        }
        store_tile(tile, 2 * n, valid, target + layout.categorical_columns, layout.head_dim);
    }
};

// The adversarial term of one tensor of logits: `part` receives the sum over the chunk.
void adversarial_part(const Strided& logits, void* gradient, int64_t chunk, Adversarial kind, float scale,
                      double& part) {
    const int64_t first = chunk * CHUNK_ROWS;
    const int64_t count = smaller(CHUNK_ROWS, logits.rows - first);
    if (count <= 0) return;
    with_storage(logits.dtype, [&](auto* storage) {
        using T = std::remove_pointer_t<decltype(storage)>;
        part = adversarial_chunk(static_cast<const T*>(logits.pointer) + first * logits.stride, logits.stride, count,
                                 kind, scale / float(logits.rows), static_cast<T*>(gradient) + first);
    });
}

// Chunk partial sums to means, terms, loss and bounds: [loss, real, fake, -E log Q per code, H + E log Q per code].
void finish(const HeadLoss& op, const double* partials) {
    const Layout& layout = op.layout;
    const int64_t n = op.recognition.present ? layout.n_codes : 0;
    const double fake_rows = double(larger<int64_t>(op.fake.rows, 1));
    const double real_rows = double(larger<int64_t>(op.real.rows, 1));
    double loss = 0.0;
    for (int64_t term = 0; term < FIRST_CODE + n; ++term) {
        double sum = 0.0;
        for (int64_t chunk = 0; chunk < n_chunks(op); ++chunk) sum += partials[chunk * n_terms(op) + term];
        const double mean = sum / (term == REAL ? real_rows : fake_rows);
        op.statistics[1 + term] = float(mean);
        if (term < FIRST_CODE) {
            loss += mean;
            continue;
        }
        const int64_t code = term - FIRST_CODE;
        loss += (op.weights ? double(op.weights[code]) : 1.0) * mean;
        op.statistics[1 + FIRST_CODE + n + code] = float(layout.entropies[code] - mean);
    }
    op.statistics[0] = float(loss);
}

}  // namespace

int64_t head_loss_scratch(const HeadLoss& op) noexcept {
    return n_chunks(op) * n_terms(op) + threads_for(op) * scratch_per_thread(op);
}

OutOfRange head_loss(const HeadLoss& op) noexcept {
    const Layout& layout = op.layout;
    const float scale = op.loss_scale ? *op.loss_scale : 1.0f;
    const Adversarial real_kind{-1.0f, 1.0f};
    const Adversarial fake_kind = op.real.present ? Adversarial{1.0f, 1.0f}
                                  : op.saturating ? Adversarial{1.0f, -1.0f}
                                                  : Adversarial{-1.0f, 1.0f};
    double* partials = op.scratch;
    double* thread_scratch = partials + n_chunks(op) * n_terms(op);
    for (int64_t i = 0; i < n_chunks(op) * n_terms(op); ++i) partials[i] = 0.0;
    OutOfRange wrong;

    parallel_chunks(threads_for(op), n_chunks(op), [&](int64_t chunk, int thread) {
        double* part = partials + chunk * n_terms(op);
        adversarial_part(op.real, op.real_gradient, chunk, real_kind, scale, part[REAL]);
        adversarial_part(op.fake, op.fake_gradient, chunk, fake_kind, scale, part[FAKE]);

        const int64_t first = chunk * CHUNK_ROWS;
        const int64_t rows = smaller(CHUNK_ROWS, op.recognition.rows - first);
        if (rows <= 0) return;
        double* sums = thread_scratch + thread * scratch_per_thread(op);
        for (int64_t i = 0; i < layout.n_codes * LANES; ++i) sums[i] = 0.0;
        float* tile = reinterpret_cast<float*>(sums + layout.n_codes * LANES);
        CodeRows codes{op, first, rows, scale / float(op.recognition.rows), tile, sums, {}};
        with_storage(op.recognition.dtype, [&](auto* storage) {
            using T = std::remove_pointer_t<decltype(storage)>;
            codes.run(static_cast<const T*>(op.recognition.pointer), static_cast<T*>(op.recognition_gradient));
        });
        for (int64_t code = 0; code < layout.n_codes; ++code) part[FIRST_CODE + code] = sum_of_lanes(sums + code * LANES);
        if (codes.wrong.row >= 0) {
#pragma omp critical(fig_head_loss)
            if (wrong.row < 0 || codes.wrong.row < wrong.row) wrong = codes.wrong;
        }
    });
    finish(op, partials);
    return wrong;
}

}  // namespace FIG_ISA
}  // namespace fig
