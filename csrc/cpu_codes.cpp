// pack_codes, traversal, unpack_codes and recognize on the CPU.
#include "codes.h"
#include "cpu_kernels.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

template <class Target>
void convert(const Strided& source, int64_t row, int64_t columns, Target* __restrict target) {
    with_storage(source.dtype, [&](auto* storage) {
        using Source = std::remove_pointer_t<decltype(storage)>;
        const Source* __restrict from = static_cast<const Source*>(source.pointer) + row * source.stride;
        for (int64_t column = 0; column < columns; ++column) from_float(to_float(from[column]), target[column]);
    });
}

// Row `row` of the codes with, in a traversal, value number `step` in place of code number op.code.
template <class T>
void pack_row(const PackCodes& op, int64_t row, int64_t step, T* __restrict z) {
    const Layout& layout = op.layout;
    T one;
    from_float(1.0f, one);
    convert(op.noise, row, layout.noise, z);
    T* one_hots = z + layout.noise;
    for (int64_t column = 0; column < layout.categorical_columns; ++column) one_hots[column] = T{};
    for (int64_t code = 0; code < layout.n_categorical; ++code) {
        const int64_t category =
            code == op.code ? int64_t(op.values[step]) : op.categories[row * layout.n_categorical + code];
        one_hots[layout.offsets[code] + category] = one;
    }
    T* continuous = one_hots + layout.categorical_columns;
    convert(op.continuous, row, layout.n_continuous, continuous);
    if (op.code >= layout.n_categorical) from_float(op.values[step], continuous[op.code - layout.n_categorical]);
}

OutOfRange first_wrong_category(const PackCodes& op) {
    const Layout& layout = op.layout;
    for (int64_t row = 0; row < op.rows; ++row)
        for (int64_t code = 0; code < layout.n_categorical; ++code) {
            const int64_t value = op.categories[row * layout.n_categorical + code];
            if (code != op.code && (value < 0 || value >= layout.sizes[code])) return {row, code, value};
        }
    if (op.code < 0 || op.code >= layout.n_categorical) return {};
    for (int64_t step = 0; step < op.n_values; ++step) {
        const float value = op.values[step];
        if (value >= 0.0f && value < float(layout.sizes[op.code])) continue;
        return {step, op.code, value > -1e9f && value < 1e9f ? int64_t(value) : -1};  // NaN has no integer
    }
    return {};
}

}  // namespace

OutOfRange pack_codes(const PackCodes& op) noexcept {
    const OutOfRange wrong = first_wrong_category(op);
    if (wrong.row >= 0) return wrong;
    const int64_t packed_rows = op.rows * op.n_values, dim = op.layout.dim;
    const int64_t n_chunks = chunks_of(packed_rows);
    parallel_chunks(useful_threads(op.threads, n_chunks, packed_rows * dim / 4), n_chunks, [&](int64_t chunk, int) {
        for (int64_t row = chunk * CHUNK_ROWS; row < smaller(packed_rows, (chunk + 1) * CHUNK_ROWS); ++row)
            with_storage(op.dtype, [&](auto* storage) {
                using T = std::remove_pointer_t<decltype(storage)>;
                pack_row(op, row / op.n_values, row % op.n_values, static_cast<T*>(op.z) + row * dim);
            });
    });
    return {};
}

void unpack_codes(const UnpackCodes& op) noexcept {
    const Layout& layout = op.layout;
    const int64_t n_chunks = chunks_of(op.z.rows);
    const int threads = useful_threads(op.threads, n_chunks, op.z.rows * layout.categorical_columns);
    parallel_chunks(threads, n_chunks, [&](int64_t chunk, int) {
        with_storage(op.z.dtype, [&](auto* storage) {
            using T = std::remove_pointer_t<decltype(storage)>;
            for (int64_t row = chunk * CHUNK_ROWS; row < smaller(op.z.rows, (chunk + 1) * CHUNK_ROWS); ++row) {
                const T* one_hots = static_cast<const T*>(op.z.pointer) + row * op.z.stride + layout.noise;
                for (int64_t code = 0; code < layout.n_categorical; ++code)
                    op.categories[row * layout.n_categorical + code] =
                        hot_column(one_hots + layout.offsets[code], layout.sizes[code]);
            }
        });
    });
}

void recognize(const Recognize& op) noexcept {
    const Layout& layout = op.layout;
    const int64_t rows = op.recognition.rows, n = layout.n_continuous, n_chunks = chunks_of(rows);
    const int threads = useful_threads(op.threads, n_chunks, rows * layout.head_dim);
    parallel_chunks(threads, n_chunks, [&](int64_t chunk, int) {
        with_storage(op.recognition.dtype, [&](auto* storage) {
            using T = std::remove_pointer_t<decltype(storage)>;
            for (int64_t row = chunk * CHUNK_ROWS; row < smaller(rows, (chunk + 1) * CHUNK_ROWS); ++row) {
                const T* q = static_cast<const T*>(op.recognition.pointer) + row * op.recognition.stride;
                for (int64_t code = 0; code < layout.n_categorical; ++code) {
                    const Recognized found = recognize_code(q + layout.offsets[code], layout.sizes[code]);
                    op.categories[row * layout.n_categorical + code] = found.category;
                    op.confidence[row * layout.n_categorical + code] = found.confidence;
                }
                q += layout.categorical_columns;
                for (int64_t i = 0; i < n; ++i) {
                    op.mean[row * n + i] = to_float(q[i]);
                    op.std[row * n + i] = standard_deviation(to_float(q[n + i]));
                }
            }
        });
    });
}

}  // namespace FIG_ISA
}  // namespace fig
