// image_batch on the CPU: gather, flip, scale, cast and write channels-last, one image per task.
#include "cpu_kernels.h"
#include "philox.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

int64_t image_size(const ImageBatch& op) { return op.height * op.width * op.channels; }

int threads_for(const ImageBatch& op) {
    return useful_threads(op.threads, chunks_of(op.rows), op.rows * image_size(op) / 8);  // a byte costs little
}

// One multiplication and one addition in fp32, and one rounding to the storage type, as the reference has it.
template <class T>
void normalise(const uint8_t* __restrict source, int64_t count, float scale, float low, T* __restrict target) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) from_float(float(int32_t(source[i])) * scale + low, target[i]);
}

template <class T>
void write_image(const ImageBatch& op, const uint8_t* source, bool mirrored, uint8_t* __restrict line, T* target) {
    if (!mirrored) return normalise(source, image_size(op), op.scale, op.low, target);
    const int64_t pitch = op.width * op.channels;
    for (int64_t y = 0; y < op.height; ++y) {
        for (int64_t x = 0; x < op.width; ++x)
            for (int64_t channel = 0; channel < op.channels; ++channel)
                line[x * op.channels + channel] = source[y * pitch + (op.width - 1 - x) * op.channels + channel];
        normalise(line, pitch, op.scale, op.low, target + y * pitch);
    }
}

}  // namespace

int64_t image_batch_scratch(const ImageBatch& op) noexcept { return threads_for(op) * op.width * op.channels; }

OutOfRange image_batch(const ImageBatch& op) noexcept {
    for (int64_t row = 0; row < op.rows; ++row)
        if (op.index[row] < 0 || op.index[row] >= op.n_images) return {row, 0, op.index[row]};
    const Stream stream = stream_of(op.flip_seed ? *op.flip_seed : 0, op.step, op.stream);
    parallel_chunks(threads_for(op), chunks_of(op.rows), [&](int64_t chunk, int thread) {
        uint8_t* line = op.scratch + thread * op.width * op.channels;
        for (int64_t row = chunk * CHUNK_ROWS; row < smaller(op.rows, (chunk + 1) * CHUNK_ROWS); ++row) {
            const bool mirrored = op.flip_seed && philox(stream, 0, uint32_t(op.row_offset + row)).w0 >> 31;
            const uint8_t* source = op.images + op.index[row] * image_size(op);
            with_storage(op.dtype, [&](auto* storage) {
                using T = std::remove_pointer_t<decltype(storage)>;
                write_image(op, source, mirrored, line, static_cast<T*>(op.batch) + row * image_size(op));
            });
        }
    });
    return {};
}

}  // namespace FIG_ISA
}  // namespace fig
