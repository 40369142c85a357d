// The micro-kernels of all matrix products: a tile of the result in registers, one step of the depth at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace kinema {
namespace KINEMA_ISA {

constexpr int NR = 2 * W; // columns of a tile: the width of a right-hand panel
constexpr int KB = 8;     // consecutive depth values of a row of the left matrix

// Layouts of the left matrix: a tile of MR rows in blocks of KB features, or plain strided rows.
struct Packed {
    static constexpr int64_t row() { return KB; }
    static constexpr int64_t block() { return MR * KB; }
};
struct RowMajor {
    int64_t stride;
    int64_t row() const { return stride; }
    static constexpr int64_t block() { return KB; }
};

// c[R, NR] = (accumulate: c +, or c · alpha[r] +) a[R, depth] · b[depth, NR], of which the first VECTORS · W columns
// are computed. A slice of the depth is summed on its own and then added: the error grows with the length of a slice
// plus the number of slices, not with their product.
template <int R, int VECTORS, class Layout>
inline __attribute__((always_inline)) void micro_kernel_f32_body(
    const float *a, Layout layout, const float *b, int64_t depth, float *c, int64_t c_stride, bool accumulate,
    const float *alpha) {
    V sums[R][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = set1(0.0f);
    const auto step_at = [&](int step, const float *row) __attribute__((always_inline)) {
        V columns[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
            columns[v] = load(row + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V x = set1(a[r * layout.row() + step]);
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = fma(x, columns[v], sums[r][v]);
        }
    };
    int64_t k = 0;
    for (; k + KB <= depth; k += KB, a += layout.block(), b += KB * NR) {
#pragma GCC unroll 8
        for (int step = 0; step < KB; ++step)
            step_at(step, b + step * NR);
    }
    for (int step = 0; k < depth; ++k, ++step, b += NR)
        step_at(step, b);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        float *to = c + r * c_stride;
        for (int v = 0; v < VECTORS; ++v, to += W)
            if (alpha != nullptr)
                store(to, fma(load(to), set1(alpha[r]), sums[r][v]));
            else
                store(to, accumulate ? add(load(to), sums[r][v]) : sums[r][v]);
    }
}

template <int R, int VECTORS, class Layout>
__attribute__((noinline)) void micro_kernel_f32(
    const float *a, Layout layout, const float *b, int64_t depth, float *c, int64_t c_stride, bool accumulate,
    const float *alpha) {
    micro_kernel_f32_body<R, VECTORS>(a, layout, b, depth, c, c_stride, accumulate, alpha);
}

// The same for `rows` rows, at most MR, and at least the first `columns` columns of the panel.
template <class Layout, int R = MR>
inline void multiply_f32(
    int rows, int columns, const float *a, Layout layout, const float *b, int64_t depth, float *c, int64_t c_stride,
    bool accumulate, const float *alpha = nullptr) {
    if constexpr (R > 1) {
        if (rows < R)
            return multiply_f32<Layout, R - 1>(rows, columns, a, layout, b, depth, c, c_stride, accumulate, alpha);
    }
    if (columns <= W)
        micro_kernel_f32<R, 1>(a, layout, b, depth, c, c_stride, accumulate, alpha);
    else
        micro_kernel_f32<R, 2>(a, layout, b, depth, c, c_stride, accumulate, alpha);
}

constexpr int I8_VECTORS = NR / I8_LANES;

// c[R, NR] = (accumulate: c +) a · b in int32, exactly. a: codes of 0 to CODE_MAX, or up to 255 where b is small enough
// that the sum of two products fits 16 bits, [depth/4][I8_ROWS][4]; b: [depth/4][NR][4].
template <int R>
__attribute__((noinline, noclone)) void
micro_kernel_i8(const uint8_t *a, const int8_t *b, int64_t depth, int32_t *c, bool accumulate) {
    I8Sum sums[R][I8_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < I8_VECTORS; ++v)
            sums[r][v] = accumulate ? i8_load(c + r * NR + I8_LANES * v) : i8_zero();
    for (int64_t k = 0; k < depth; k += 4, a += 4 * I8_ROWS, b += 4 * NR) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const I8Codes codes = i8_broadcast(a + 4 * r);
#pragma GCC unroll 4
            for (int v = 0; v < I8_VECTORS; ++v)
                i8_dot(sums[r][v], codes, b + 4 * I8_LANES * v);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < I8_VECTORS; ++v)
            i8_store(c + r * NR + I8_LANES * v, sums[r][v]);
}

template <int R = I8_ROWS>
inline void multiply_i8(int rows, const uint8_t *a, const int8_t *b, int64_t depth, int32_t *c, bool accumulate) {
    if constexpr (R == 1)
        micro_kernel_i8<1>(a, b, depth, c, accumulate);
    else if (rows == R)
        micro_kernel_i8<R>(a, b, depth, c, accumulate);
    else
        multiply_i8<R - 1>(rows, a, b, depth, c, accumulate);
}

} // namespace KINEMA_ISA
} // namespace kinema
