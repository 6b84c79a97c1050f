// pack_codes, traversal, unpack_codes and recognize on CUDA: one launch each, on the caller's stream.
//
// All are bound by memory: pack writes rows * dim elements and reads what it packs once; unpack and recognize read the
// row once. One warp takes one row, so that its columns are written by neighbouring lanes.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "codes.h"
#include "cuda_ops.h"

namespace fig {

namespace {

constexpr int WARP = 32;
constexpr int WARPS_PER_BLOCK = 4;
constexpr int64_t MAX_BLOCKS = 1 << 16;  // warps stride over the rows beyond
constexpr int MAX_CODES = 256;           // as many offsets as a kernel's parameters hold with room to spare

// First column of each categorical code, and one past the last: passed by value, so nothing is copied to the device.
struct Columns {
    int n_codes;
    int first[MAX_CODES + 1];
};

Columns columns_of(const Layout& layout, const char* op) {
    if (layout.n_categorical > MAX_CODES || layout.categorical_columns > INT32_MAX)
        throw std::runtime_error(std::string(op) + ": the CUDA kernel takes at most " + std::to_string(MAX_CODES) +
                                 " categorical codes, of 2^31 - 1 columns together, got " +
                                 std::to_string(layout.n_categorical) + " of " +
                                 std::to_string(layout.categorical_columns));
    Columns columns{};
    columns.n_codes = int(layout.n_categorical);
    for (int code = 0; code < columns.n_codes; ++code) columns.first[code] = int(layout.offsets[code]);
    columns.first[columns.n_codes] = int(layout.categorical_columns);
    return columns;
}

// Makes `device` current for one launch, and the caller's device again after it.
class DeviceGuard {
   public:
    explicit DeviceGuard(int device) {
        cudaGetDevice(&previous_);
        if (device != previous_) cudaSetDevice(device);
        changed_ = device != previous_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

   private:
    int previous_ = 0;
    bool changed_ = false;
};

unsigned blocks_for(int64_t rows) {
    return unsigned(smaller(MAX_BLOCKS, (rows + WARPS_PER_BLOCK - 1) / WARPS_PER_BLOCK));
}

void check_launch(const char* op, int64_t rows, int64_t columns) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + " on [" + std::to_string(rows) + ", " + std::to_string(columns) +
                                 "]: the CUDA launch failed: " + cudaGetErrorString(error));
}

__device__ float load(const void* pointer, Dtype dtype, int64_t index) {
    switch (dtype) {
        case Dtype::bfloat16: return to_float(static_cast<const Bfloat16*>(pointer)[index]);
        case Dtype::float16: return to_float(static_cast<const Half*>(pointer)[index]);
        default: return static_cast<const float*>(pointer)[index];
    }
}

// Calls kernel(storage pointer) with the storage type of `dtype`.
template <class Body>
void with_storage(Dtype dtype, const Body& body) {
    switch (dtype) {
        case Dtype::float32: return body(static_cast<float*>(nullptr));
        case Dtype::bfloat16: return body(static_cast<Bfloat16*>(nullptr));
        case Dtype::float16: return body(static_cast<Half*>(nullptr));
    }
}

struct PackArguments {
    const void *noise, *continuous;
    Dtype noise_dtype, continuous_dtype;
    int64_t noise_stride, continuous_stride, n_noise, n_continuous;
    const int64_t* categories;
    const float* values;
    int64_t rows, n_values, code;  // rows: packed rows
};

template <class T>
__global__ void pack_kernel(PackArguments arguments, Columns columns, T* z) {
    const int lane = int(threadIdx.x);
    const int one_hot_columns = columns.first[columns.n_codes];
    const int64_t dim = arguments.n_noise + one_hot_columns + arguments.n_continuous;
    const int64_t stride = int64_t(gridDim.x) * WARPS_PER_BLOCK;
    for (int64_t packed = int64_t(blockIdx.x) * WARPS_PER_BLOCK + threadIdx.y; packed < arguments.rows; packed += stride) {
        const int64_t row = packed / arguments.n_values, step = packed % arguments.n_values;
        T* out = z + packed * dim;
        for (int64_t column = lane; column < arguments.n_noise; column += WARP)
            from_float(load(arguments.noise, arguments.noise_dtype, row * arguments.noise_stride + column), out[column]);
        out += arguments.n_noise;
        // Zero the one-hots, then set the hot columns: other lanes' zeros must have landed first.
        for (int column = lane; column < one_hot_columns; column += WARP) out[column] = T{};
        __syncwarp();
        for (int code = lane; code < columns.n_codes; code += WARP) {
            const int64_t k = columns.first[code + 1] - columns.first[code];
            const int64_t category = code == arguments.code ? int64_t(arguments.values[step])
                                                            : arguments.categories[row * columns.n_codes + code];
            if (category >= 0 && category < k) from_float(1.0f, out[columns.first[code] + category]);
        }
        out += one_hot_columns;
        for (int64_t i = lane; i < arguments.n_continuous; i += WARP) {
            const bool replaced = columns.n_codes + i == arguments.code;
            const int64_t index = row * arguments.continuous_stride + i;
            from_float(replaced ? arguments.values[step] : load(arguments.continuous, arguments.continuous_dtype, index),
                       out[i]);
        }
    }
}

template <class T>
__global__ void unpack_kernel(const T* z, int64_t stride, int64_t noise, int64_t rows, Columns columns,
                              int64_t* categories) {
    const int64_t step = int64_t(gridDim.x) * WARPS_PER_BLOCK;
    for (int64_t row = int64_t(blockIdx.x) * WARPS_PER_BLOCK + threadIdx.y; row < rows; row += step)
        for (int code = int(threadIdx.x); code < columns.n_codes; code += WARP)
            categories[row * columns.n_codes + code] =
                hot_column(z + row * stride + noise + columns.first[code], columns.first[code + 1] - columns.first[code]);
}

template <class T>
__global__ void recognize_kernel(const T* recognition, int64_t stride, int64_t rows, int64_t n_continuous,
                                 Columns columns, int64_t* categories, float* confidence, float* mean, float* std) {
    const int64_t step = int64_t(gridDim.x) * WARPS_PER_BLOCK;
    for (int64_t row = int64_t(blockIdx.x) * WARPS_PER_BLOCK + threadIdx.y; row < rows; row += step) {
        const T* q = recognition + row * stride;
        for (int code = int(threadIdx.x); code < columns.n_codes; code += WARP) {
            const Recognized found =
                recognize_code(q + columns.first[code], columns.first[code + 1] - columns.first[code]);
            categories[row * columns.n_codes + code] = found.category;
            confidence[row * columns.n_codes + code] = found.confidence;
        }
        q += columns.first[columns.n_codes];
        for (int64_t i = threadIdx.x; i < n_continuous; i += WARP) {
            mean[row * n_continuous + i] = to_float(q[i]);
            std[row * n_continuous + i] = standard_deviation(to_float(q[n_continuous + i]));
        }
    }
}

const dim3 BLOCK(WARP, WARPS_PER_BLOCK);

}  // namespace

void cuda_pack_codes(const PackCodes& op, CudaQueue queue) {
    const Columns columns = columns_of(op.layout, "pack_codes");
    const PackArguments arguments{op.noise.pointer,     op.continuous.pointer,
                                  op.noise.dtype,       op.continuous.dtype,
                                  op.noise.stride,      op.continuous.stride,
                                  op.layout.noise,      op.layout.n_continuous,
                                  op.categories,        op.values,
                                  op.rows * op.n_values, op.n_values,
                                  op.code};
    if (arguments.rows == 0) return;
    const DeviceGuard guard(queue.device);
    with_storage(op.dtype, [&](auto* storage) {
        pack_kernel<<<blocks_for(arguments.rows), BLOCK, 0, reinterpret_cast<cudaStream_t>(queue.stream)>>>(
            arguments, columns, static_cast<decltype(storage)>(op.z));
    });
    check_launch("pack_codes", arguments.rows, op.layout.dim);
}

void cuda_unpack_codes(const UnpackCodes& op, CudaQueue queue) {
    const Columns columns = columns_of(op.layout, "unpack_codes");
    if (op.z.rows == 0 || columns.n_codes == 0) return;
    const DeviceGuard guard(queue.device);
    with_storage(op.z.dtype, [&](auto* storage) {
        using T = std::remove_pointer_t<decltype(storage)>;
        unpack_kernel<<<blocks_for(op.z.rows), BLOCK, 0, reinterpret_cast<cudaStream_t>(queue.stream)>>>(
            static_cast<const T*>(op.z.pointer), op.z.stride, op.layout.noise, op.z.rows, columns, op.categories);
    });
    check_launch("unpack_codes", op.z.rows, op.layout.dim);
}

void cuda_recognize(const Recognize& op, CudaQueue queue) {
    const Columns columns = columns_of(op.layout, "recognize");
    if (op.recognition.rows == 0) return;
    const DeviceGuard guard(queue.device);
    with_storage(op.recognition.dtype, [&](auto* storage) {
        using T = std::remove_pointer_t<decltype(storage)>;
        recognize_kernel<<<blocks_for(op.recognition.rows), BLOCK, 0, reinterpret_cast<cudaStream_t>(queue.stream)>>>(
            static_cast<const T*>(op.recognition.pointer), op.recognition.stride, op.recognition.rows,
            op.layout.n_continuous, columns, op.categories, op.confidence, op.mean, op.std);
    });
    check_launch("recognize", op.recognition.rows, op.layout.head_dim);
}

}  // namespace fig
