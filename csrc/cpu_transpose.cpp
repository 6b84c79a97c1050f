// A matrix of 2-byte values with rows and columns exchanged.
//
// The gradient of a weight is the product of a transposed matrix with another. The CPU's library takes matrices that lie
// as they are read at twice the rate of such a product, whose first factor it rearranges value by value. Here 8x8 blocks
// change places in registers, in three rounds of interleaving: of values, of pairs, of fours.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu_kernels.h"

namespace fig {
inline namespace FIG_ISA {

namespace {

constexpr int64_t BLOCK = 8;
constexpr int64_t TILE_COLUMNS = 32;  // a cache line of each row is read whole
constexpr int64_t TILE_ROWS = 512;    // and 1 kB of each of the 32 target rows written

inline void by_value(const uint16_t* source, int64_t columns, uint16_t* target, int64_t rows, int64_t height,
                     int64_t width) {
    for (int64_t row = 0; row < height; ++row)
        for (int64_t column = 0; column < width; ++column) target[column * rows + row] = source[row * columns + column];
}

#if defined(__SSE2__)
inline void block(const uint16_t* source, int64_t columns, uint16_t* target, int64_t rows) {
    __m128i in[8], pair[8], four[8];
    for (int i = 0; i < 8; ++i) in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i * columns));
    for (int i = 0; i < 8; i += 2) {  // rows i, i + 1 of columns 0 to 3, and of columns 4 to 7
        pair[i] = _mm_unpacklo_epi16(in[i], in[i + 1]);
        pair[i + 1] = _mm_unpackhi_epi16(in[i], in[i + 1]);
    }
    for (int half = 0; half < 2; ++half)  // rows 4 * half to 4 * half + 3 of two columns each
        for (int side = 0; side < 2; ++side) {
            const __m128i upper = pair[4 * half + side], lower = pair[4 * half + side + 2];
            four[4 * half + 2 * side] = _mm_unpacklo_epi32(upper, lower);
            four[4 * half + 2 * side + 1] = _mm_unpackhi_epi32(upper, lower);
        }
    for (int i = 0; i < 4; ++i) {  // columns 2 i and 2 i + 1
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 2 * i * rows), _mm_unpacklo_epi64(four[i], four[i + 4]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target + (2 * i + 1) * rows),
                         _mm_unpackhi_epi64(four[i], four[i + 4]));
    }
}
#else
inline void block(const uint16_t* source, int64_t columns, uint16_t* target, int64_t rows) {
    by_value(source, columns, target, rows, BLOCK, BLOCK);
}
#endif

FIG_OWN_FUNCTION void tile(const Transpose& op, int64_t first_row, int64_t first_column) {
    const int64_t last_row = smaller(op.rows, first_row + TILE_ROWS);
    const int64_t last_column = smaller(op.columns, first_column + TILE_COLUMNS);
    for (int64_t row = first_row; row < last_row; row += BLOCK)
        for (int64_t column = first_column; column < last_column; column += BLOCK) {
            const uint16_t* source = op.source + row * op.columns + column;
            uint16_t* target = op.target + column * op.rows + row;
            const int64_t height = smaller(BLOCK, last_row - row), width = smaller(BLOCK, last_column - column);
            if (height == BLOCK && width == BLOCK)
                block(source, op.columns, target, op.rows);
            else
                by_value(source, op.columns, target, op.rows, height, width);
        }
}

}  // namespace

void transpose(const Transpose& op) noexcept {
    const int64_t down = (op.rows + TILE_ROWS - 1) / TILE_ROWS;
    const int64_t tiles = down * ((op.columns + TILE_COLUMNS - 1) / TILE_COLUMNS);
    parallel_chunks(useful_threads(op.threads, tiles, op.rows * op.columns), tiles, [&](int64_t index, int) {
        tile(op, index % down * TILE_ROWS, index / down * TILE_COLUMNS);
    });
}

}  // namespace FIG_ISA
}  // namespace fig
