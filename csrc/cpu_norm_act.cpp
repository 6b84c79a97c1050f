// Batch norm and the leaky ReLU behind it, forward and backward, over the columns of a matrix; or bias and activation.
//
// Forward reads x twice and writes y once, backward reads x and dy twice and writes dx once: what separate passes for
// norm and activation, with fp32 in between, take three times over.
//
// 1. Per column of a group of n rows: mean m and variance v, from those of chunks of rows (Chan et al. 1979): with sums
//    of squares alone, a mean far from 0 would drown the variance.
// 2. With r = 1 / sqrt(v + eps): z = (x - m) (gain r) + bias, y = z where z > 0, else slope z. The mean is taken off
//    first: x (gain r) + (bias - m gain r) would save a subtraction and lose the digits in which x and m agree.
// 3. Backward: dz = dy * (z > 0 ? 1 : slope), h = (x - m) r, and
//    dgain = sum(dz h), dbias = sum(dz), dx = gain r (dz - sum(dz) / n - h sum(dz h) / n).
#include <math.h>

#include "cpu_kernels.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

int64_t chunks_of_group(const NormAct& op) { return chunks_of(op.rows); }

int threads_for(const NormAct& op) {
    return useful_threads(op.threads, op.groups * chunks_of_group(op), op.groups * op.rows * op.columns);
}

// scratch: per group two rows (scale and centre), then two rows of partial sums per chunk.
float* scale_of(const NormAct& op, int64_t group) { return op.scratch + group * 2 * op.columns; }
float* sums_of(const NormAct& op, int64_t chunk) { return op.scratch + (op.groups + chunk) * 2 * op.columns; }

// body(group, first row of all, end, number of the chunk) for every chunk of rows of every group.
template <class Body>
void over_chunks(const NormAct& op, const Body& body) {
    const int64_t chunks = chunks_of_group(op);
    parallel_chunks(threads_for(op), op.groups * chunks, [&](int64_t chunk, int) {
        const int64_t group = chunk / chunks, first = chunk % chunks * CHUNK_ROWS;
        body(group, group * op.rows + first, group * op.rows + smaller(op.rows, first + CHUNK_ROWS), chunk);
    });
}

int64_t rows_of(const NormAct& op, int64_t chunk) { return smaller(CHUNK_ROWS, op.rows - chunk * CHUNK_ROWS); }

// The two sums of a column of a group over its chunks, in order.
void column_sums(const NormAct& op, int64_t group, int64_t column, double& a, double& b) {
    const int64_t chunks = chunks_of_group(op);
    a = b = 0.0;
    for (int64_t chunk = group * chunks; chunk < (group + 1) * chunks; ++chunk) {
        a += sums_of(op, chunk)[column];
        b += sums_of(op, chunk)[op.columns + column];
    }
}

// The passes over the rows of a chunk.

// sum += the sum over ROWS rows of f(value, column): so many rows are added up before they meet the sum, which halves the
// loads and stores of a plain loop over rows and keeps an eighth of its rounding.
template <int ROWS, class T, class F>
FIG_OWN_FUNCTION void add_rows(int64_t columns, const T* __restrict x, float* __restrict sum, F f) {
#pragma omp simd
    for (int64_t column = 0; column < columns; ++column) {
        float block = 0.0f;
        for (int row = 0; row < ROWS; ++row) block += f(to_float(x[row * columns + column]), column);
        sum[column] += block;
    }
}

template <class T, class F>
void sum_rows(int64_t rows, int64_t columns, const T* x, float* sum, F f) {
    for (int64_t column = 0; column < columns; ++column) sum[column] = 0.0f;
    int64_t row = 0;
    for (; row + 8 <= rows; row += 8) add_rows<8>(columns, x + row * columns, sum, f);
    for (; row < rows; ++row) add_rows<1>(columns, x + row * columns, sum, f);
}

// How far the mean of the rows is from an origin near them, and the sum of squares about the mean. Rounded beside that
// distance instead of its size, a mean far from 0 is as exact as one near it. The rows of a chunk stay in the first-level
// cache, so that the second look at them is free.
template <class T>
void chunk_statistics(int64_t rows, int64_t columns, const T* origin, const T* x, float* offset, float* squares) {
    sum_rows(rows, columns, x, offset, [=](float value, int64_t column) { return value - to_float(origin[column]); });
    for (int64_t column = 0; column < columns; ++column) offset[column] /= float(rows);
    sum_rows(rows, columns, x, squares, [=](float value, int64_t column) {
        const float distance = value - (to_float(origin[column]) + offset[column]);
        return distance * distance;
    });
}

template <class T>
FIG_OWN_FUNCTION void apply_rows(int64_t rows, int64_t columns, float slope, const float* __restrict scale,
                                 const float* __restrict centre, const float* __restrict bias, const T* __restrict x,
                                 T* __restrict y) {
    for (int64_t row = 0; row < rows; ++row, x += columns, y += columns)
#pragma omp simd
        for (int64_t column = 0; column < columns; ++column) {
            const float z = (to_float(x[column]) - centre[column]) * scale[column] + bias[column];
            from_float(z > 0.0f ? z : z * slope, y[column]);
        }
}

// sum(dz) and sum(dz (x - m)).
template <class T>
FIG_OWN_FUNCTION void sum_gradient_rows(int64_t rows, int64_t columns, float slope, const float* __restrict scale,
                                        const float* __restrict centre, const float* __restrict bias,
                                        const T* __restrict x, const T* __restrict dy, float* __restrict sum,
                                        float* __restrict product) {
    for (int64_t column = 0; column < columns; ++column) sum[column] = product[column] = 0.0f;
    for (int64_t row = 0; row < rows; ++row, x += columns, dy += columns)
#pragma omp simd
        for (int64_t column = 0; column < columns; ++column) {
            const float distance = to_float(x[column]) - centre[column], above = to_float(dy[column]);
            const float dz = distance * scale[column] + bias[column] > 0.0f ? above : above * slope;
            sum[column] += dz;
            product[column] += dz * distance;
        }
}

// Bias and activation alone: dx = dz and sum(dz) in one pass.
template <class T>
FIG_OWN_FUNCTION void plain_gradient_rows(int64_t rows, int64_t columns, float slope, const float* __restrict bias,
                                          const T* __restrict x, const T* __restrict dy, float* __restrict sum,
                                          T* __restrict dx) {
    for (int64_t column = 0; column < columns; ++column) sum[column] = 0.0f;
    for (int64_t row = 0; row < rows; ++row, x += columns, dy += columns, dx += columns)
#pragma omp simd
        for (int64_t column = 0; column < columns; ++column) {
            const float above = to_float(dy[column]);
            const float dz = to_float(x[column]) + bias[column] > 0.0f ? above : above * slope;
            sum[column] += dz;
            from_float(dz, dx[column]);
        }
}

// dx = scale dz + along (x - m) + constant.
template <class T>
FIG_OWN_FUNCTION void gradient_rows(int64_t rows, int64_t columns, float slope, const float* __restrict scale,
                                    const float* __restrict centre, const float* __restrict bias,
                                    const float* __restrict along, const float* __restrict constant,
                                    const T* __restrict x, const T* __restrict dy, T* __restrict dx) {
    for (int64_t row = 0; row < rows; ++row, x += columns, dy += columns, dx += columns)
#pragma omp simd
        for (int64_t column = 0; column < columns; ++column) {
            const float distance = to_float(x[column]) - centre[column], above = to_float(dy[column]);
            const float dz = distance * scale[column] + bias[column] > 0.0f ? above : above * slope;
            from_float(dz * scale[column] + (distance * along[column] + constant[column]), dx[column]);
        }
}

template <class T>
void statistics(const NormAct& op) {
    const T* x = static_cast<const T*>(op.x);
    const int64_t group_size = op.rows * op.columns;  // the origin of a group is its first row
    over_chunks(op, [&](int64_t group, int64_t first, int64_t end, int64_t chunk) {
        float* offset = sums_of(op, chunk);
        chunk_statistics(end - first, op.columns, x + group * group_size, x + first * op.columns, offset,
                         offset + op.columns);
    });
    const int64_t chunks = chunks_of_group(op);
    for (int64_t group = 0; group < op.groups; ++group)
        for (int64_t column = 0; column < op.columns; ++column) {
            double offset = 0.0, squares = 0.0;
            for (int64_t chunk = 0; chunk < chunks; ++chunk)
                offset += double(rows_of(op, chunk)) * sums_of(op, group * chunks + chunk)[column];
            offset /= double(op.rows);
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const float* part = sums_of(op, group * chunks + chunk);
                const double distance = part[column] - offset;
                squares += part[op.columns + column] + double(rows_of(op, chunk)) * distance * distance;
            }
            op.mean[group * op.columns + column] = float(to_float(x[group * group_size + column]) + offset);
            op.variance[group * op.columns + column] = float(squares / double(op.rows));
        }
}

// z = (x - centre) * scale + bias, from the statistics that stand in op.mean and op.variance.
void scales_and_centres(const NormAct& op) {
    for (int64_t group = 0; group < op.groups; ++group) {
        float* scale = scale_of(op, group);
        for (int64_t column = 0; column < op.columns; ++column) {
            const int64_t at = group * op.columns + column;
            scale[column] = op.normalise ? op.gain[column] / sqrtf(op.variance[at] + op.eps) : 1.0f;
            scale[op.columns + column] = op.normalise ? op.mean[at] : 0.0f;
        }
    }
}

template <class T>
void apply(const NormAct& op) {
    over_chunks(op, [&](int64_t group, int64_t first, int64_t end, int64_t) {
        const float* scale = scale_of(op, group);
        apply_rows(end - first, op.columns, op.slope, scale, scale + op.columns, op.bias,
                   static_cast<const T*>(op.x) + first * op.columns, static_cast<T*>(op.y) + first * op.columns);
    });
}

template <class T>
void gradient_sums(const NormActBackward& backward) {
    const NormAct& op = backward.forward;
    over_chunks(op, [&](int64_t group, int64_t first, int64_t end, int64_t chunk) {
        const float* scale = scale_of(op, group);
        const T* x = static_cast<const T*>(op.x) + first * op.columns;
        const T* dy = static_cast<const T*>(backward.y_gradient) + first * op.columns;
        float* sums = sums_of(op, chunk);
        if (op.normalise)
            sum_gradient_rows(end - first, op.columns, op.slope, scale, scale + op.columns, op.bias, x, dy, sums,
                              sums + op.columns);
        else
            plain_gradient_rows(end - first, op.columns, op.slope, op.bias, x, dy, sums,
                                static_cast<T*>(backward.x_gradient) + first * op.columns);
    });
}

// dx = a dz + b (x - m) + c, with a = gain r, b = -a r^2 sum(dz (x - m)) / n and c = -a sum(dz) / n.
template <class T>
void gradient(const NormActBackward& backward, const float* b, const float* c) {
    const NormAct& op = backward.forward;
    over_chunks(op, [&](int64_t group, int64_t first, int64_t end, int64_t) {
        const float* scale = scale_of(op, group);
        gradient_rows(end - first, op.columns, op.slope, scale, scale + op.columns, op.bias, b + group * op.columns,
                      c + group * op.columns, static_cast<const T*>(op.x) + first * op.columns,
                      static_cast<const T*>(backward.y_gradient) + first * op.columns,
                      static_cast<T*>(backward.x_gradient) + first * op.columns);
    });
}

}  // namespace

int64_t norm_act_scratch(const NormAct& op) noexcept {
    return (2 * op.groups + 2 * op.groups * chunks_of_group(op) + 2 * op.groups) * op.columns;
}

void norm_act(const NormAct& op) noexcept {
    with_storage(op.dtype, [&](auto* storage) {
        using T = std::remove_pointer_t<decltype(storage)>;
        if (op.normalise) statistics<T>(op);
        scales_and_centres(op);
        apply<T>(op);
    });
}

void norm_act_backward(const NormActBackward& backward) noexcept {
    const NormAct& op = backward.forward;
    float* along = sums_of(op, op.groups * chunks_of_group(op));
    float* constant = along + op.groups * op.columns;
    scales_and_centres(op);
    with_storage(op.dtype, [&](auto* storage) { gradient_sums<std::remove_pointer_t<decltype(storage)>>(backward); });
    for (int64_t column = 0; column < op.columns; ++column) {
        double gain_gradient = 0.0, bias_gradient = 0.0;
        for (int64_t group = 0; group < op.groups; ++group) {
            const int64_t at = group * op.columns + column;
            double sum, product;
            column_sums(op, group, column, sum, product);
            bias_gradient += sum;
            if (!op.normalise) continue;
            const double inverse_variance = 1.0 / (double(op.variance[at]) + double(op.eps));
            gain_gradient += product * sqrt(inverse_variance);
            const double a = scale_of(op, group)[column], n = double(op.rows);
            along[at] = float(-a * inverse_variance * product / n);
            constant[at] = float(-a * sum / n);
        }
        backward.gain_gradient[column] = float(gain_gradient);
        backward.bias_gradient[column] = float(bias_gradient);
    }
    if (!op.normalise) return;
    with_storage(op.dtype, [&](auto* storage) {
        gradient<std::remove_pointer_t<decltype(storage)>>(backward, along, constant);
    });
}

}  // namespace FIG_ISA
}  // namespace fig
