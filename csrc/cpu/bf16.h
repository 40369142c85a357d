// bf16 products, summed two at a time in fp32 (AVX512_BF16): the rows and columns of an fp32 tile in half the steps.
// Panels interleave pairs of a column's values. Of a linear, rows are cast to bf16 while they are packed; e4m3 panels,
// whose values all exist in bf16, are converted one by one.
#pragma once

#include <cstdint>

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t BF16_DEPTH = 384; // a panel takes 24 KB

// Layouts of the left matrix: a tile of MR rows, [depth/2][MR][2], or plain strided rows.
struct PairedTile {
    static constexpr int64_t row() { return 2; }
    static constexpr int64_t step() { return 2 * MR; }
};
struct PairedRows {
    int64_t stride;
    int64_t row() const { return stride; }
    static constexpr int64_t step() { return 2; }
};

// What becomes of a tile's sums at `to`, in row r.
struct Accumulated {
    bool accumulate;
    V operator()(const float *to, int, V sum) const { return accumulate ? add(load(to), sum) : sum; }
};
struct Scaled {
    float scale;
    V operator()(const float *, int, V sum) const { return mul(sum, set1(scale)); }
};
struct AddedToScaled {
    const float *scale; // [rows]
    V operator()(const float *to, int r, V sum) const { return fma(load(to), set1(scale[r]), sum); }
};

// c[R, NR] = finish(a · b), of which the first VECTORS · W columns are computed. b: [depth/2][NR][2].
template <int R, int VECTORS, class Layout, class Finish>
__attribute__((noinline, noclone)) void micro_kernel_bf16(
    const uint16_t *a, Layout layout, const uint16_t *b, int64_t depth, float *c, int64_t c_stride, Finish finish) {
    V sums[R][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = set1(0.0f);
    for (int64_t k = 0; k < depth; k += 2, a += layout.step(), b += 2 * NR) {
        Bf16Pairs columns[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
            columns[v] = load_pairs(b + 2 * v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Bf16Pairs x = broadcast_pair(a + r * layout.row());
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = dot_pairs(sums[r][v], x, columns[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            float *to = c + r * c_stride + v * W;
            store(to, finish(to, r, sums[r][v]));
        }
}

// The same for `rows` rows, at most MR, and at least the first `columns` columns of the panel.
template <class Layout, class Finish, int R = MR>
inline void multiply_bf16(
    int rows, int columns, const uint16_t *a, Layout layout, const uint16_t *b, int64_t depth, float *c,
    int64_t c_stride, Finish finish) {
    if constexpr (R > 1) {
        if (rows < R)
            return multiply_bf16<Layout, Finish, R - 1>(rows, columns, a, layout, b, depth, c, c_stride, finish);
    }
    if (columns <= W)
        micro_kernel_bf16<R, 1>(a, layout, b, depth, c, c_stride, finish);
    else
        micro_kernel_bf16<R, 2>(a, layout, b, depth, c, c_stride, finish);
}

// Depth k to k + count of an e4m3 panel, as bf16 pairs in `to`.
inline const uint16_t *pairs_of_e4m3(const uint8_t *from, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count; i += 2)
        for (int c = 0; c < NR; c += W) {
            const V odd = i + 1 < count ? load_e4m3(from + (i + 1) * NR + c) : set1(0.0f);
            store_pairs(to + i * NR + 2 * c, load_e4m3(from + i * NR + c), odd);
        }
    return to;
}

struct Bf16Kernel {
    using A = uint16_t;
    using C = float;
    static constexpr int ROWS = MR;
    static constexpr int64_t BLOCK = BLOCK_ROWS;
    static constexpr int64_t DEPTH = BF16_DEPTH;
    static constexpr int64_t A_BYTES = MR * 2;
    static constexpr int64_t GROUP = 2;
    static const void *panel(const GemmProblem &p, int64_t panel, int64_t k, int64_t count, float *buffer) {
        const int64_t stored = stored_depth(p.depth, p.dtype);
        if (p.dtype == KINEMA_BF16)
            return panel_at<uint16_t>(p.weight, panel, stored, k);
        return pairs_of_e4m3(
            panel_at<uint8_t>(p.weight, panel, stored, k), count, reinterpret_cast<uint16_t *>(buffer));
    }
    static void
    multiply(int rows, int columns, const uint16_t *a, const void *b, int64_t depth, float *c, bool accumulate) {
        multiply_bf16(
            rows, columns, a, PairedTile{}, static_cast<const uint16_t *>(b), depth, c, NR, Accumulated{accumulate});
    }
};

} // namespace KINEMA_ISA
} // namespace kinema
