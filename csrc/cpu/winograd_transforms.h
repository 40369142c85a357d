// The transforms of Winograd's F(2×2, 3×3) and F(4×4, 3×3) (Lavin and Gray 2016, arXiv 1509.09308):
// y = Aᵀ[(G g Gᵀ) ∘ (Bᵀ d B)]A.
//
// g: 3×3 taps, transformed when the weight is packed; d: a patch of 4×4 or 6×6 inputs; y: a tile of 2×2 or 4×4 outputs.
// ∘ is the elementwise product at 16 or 36 positions: winograd.h.
//
// F(4×4) interpolates at 0, ±3/4, ±3/2 and infinity. The usual points 0, ±1, ±2 give simpler factors but twice the
// rounding error; these factors are exact in fp32 too. The divisors of the inverse are folded into G.
#pragma once

#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// The side of a patch for a tile of `tile` outputs, and the tile of a patch of `size`; 3 is a patch with a fused
// upsample.
constexpr int64_t patch_size(int64_t tile) { return tile + 2; }
constexpr int outputs_of(int size) { return size == 6 ? 4 : 2; }

inline int64_t padded_channels(int64_t channels) { return ceil_div(channels, KB) * KB; }

// ---- the weight: [positions][panels][taps of time · channels, padded to whole groups][NR]

inline int64_t winograd_packed_bytes(int64_t in_channels, int64_t out_channels, int64_t kernel_t, int64_t tile) {
    return patch_size(tile) * patch_size(tile) *
           packed_bytes(kernel_t * padded_channels(in_channels), out_channels, KINEMA_F32, 0);
}

// The filter transform. weight: [out_channels, kernel_t, 3, 3, in_channels]. In float64, rounded once.
inline void winograd_pack(
    int64_t in_channels, int64_t out_channels, int64_t kernel_t, int64_t tile, const float *weight, void *packed,
    Call &call) {
    static const double G2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    // (1, p, p²) / Π (p − the other points) for p = 0, 3/4, −3/4, 3/2, −3/2; for infinity the last tap
    constexpr double ZERO = 64.0 / 81, NEAR = -128.0 / 243, FAR = 32.0 / 243;
    static const double G4[6][3] = {
        {ZERO, 0, 0},
        {NEAR, NEAR * 3 / 4, NEAR * 9 / 16},
        {NEAR, NEAR * -3 / 4, NEAR * 9 / 16},
        {FAR, FAR * 3 / 2, FAR * 9 / 4},
        {FAR, FAR * -3 / 2, FAR * 9 / 4},
        {0, 0, 1}};
    const double (*G)[3] = tile == 2 ? G2 : G4;
    const int64_t panels = ceil_div(out_channels, NR), depth = kernel_t * padded_channels(in_channels);
    const int64_t size = patch_size(tile);
    float *to = static_cast<float *>(packed);
    for (int64_t position = 0; position < size * size && !call.interrupted(0); ++position)
        std::memset(to + position * panels * depth * NR, 0, panels * depth * NR * sizeof(float));
    for (int64_t n = 0; n < out_channels && !call.interrupted(0); ++n)
        for (int64_t tap = 0; tap < kernel_t; ++tap)
            for (int64_t c = 0; c < in_channels; ++c) {
                const float *taps = weight + (n * kernel_t + tap) * 9 * in_channels + c;
                for (int64_t position = 0; position < size * size; ++position) {
                    double sum = 0;
                    for (int i = 0; i < 3; ++i)
                        for (int j = 0; j < 3; ++j)
                            sum += G[position / size][i] * G[position % size][j] * taps[(i * 3 + j) * in_channels];
                    const int64_t k = tap * padded_channels(in_channels) + c;
                    to[((position * panels + n / NR) * depth + k) * NR + n % NR] = static_cast<float>(sum);
                }
            }
}

// ---- the transforms

// Bᵀ d for a row d of four. For three, of which the middle one is doubled by upsampling (a, b, b, c), the third result
// is zero and omitted. For six: the polynomials that vanish at all points but one.
template <int SIZE> inline __attribute__((always_inline)) void input_transform_1d(const V *d, V *to) {
    if constexpr (SIZE == 3) {
        to[0] = sub(d[0], d[1]);
        to[1] = add(d[1], d[1]);
        to[2] = sub(d[1], d[2]);
    } else if constexpr (SIZE == 4) {
        to[0] = sub(d[0], d[2]);
        to[1] = add(d[1], d[2]);
        to[2] = sub(d[2], d[1]);
        to[3] = sub(d[1], d[3]);
    } else {
        const V sum = set1(-45.0f / 16), product = set1(81.0f / 64); // of the squares of 3/4 and 3/2
        to[0] = fma(product, d[0], fma(sum, d[2], d[4]));
        V even = fma(set1(-9.0f / 4), d[2], d[4]), odd = fma(set1(-9.0f / 4), d[1], d[3]);
        to[1] = fma(set1(0.75f), odd, even);
        to[2] = fma(set1(-0.75f), odd, even);
        even = fma(set1(-9.0f / 16), d[2], d[4]);
        odd = fma(set1(-9.0f / 16), d[1], d[3]);
        to[3] = fma(set1(1.5f), odd, even);
        to[4] = fma(set1(-1.5f), odd, even);
        to[5] = fma(product, d[1], fma(sum, d[3], d[5]));
    }
}

// Aᵀ m for a row m of sums.
template <int SIZE> inline __attribute__((always_inline)) void output_transform_1d(const V *m, V *to) {
    if constexpr (SIZE == 3) {
        to[0] = add(m[0], m[1]);
        to[1] = sub(m[1], m[2]);
    } else if constexpr (SIZE == 4) {
        to[0] = add(add(m[0], m[1]), m[2]);
        to[1] = sub(sub(m[1], m[2]), m[3]);
    } else {
        const V near = add(m[1], m[2]), near_odd = sub(m[1], m[2]);
        const V far = add(m[3], m[4]), far_odd = sub(m[3], m[4]);
        to[0] = add(add(near, far), m[0]);
        to[1] = fma(set1(0.75f), near_odd, mul(set1(1.5f), far_odd));
        to[2] = fma(set1(9.0f / 16), near, mul(set1(9.0f / 4), far));
        to[3] = fma(set1(27.0f / 64), near_odd, fma(set1(27.0f / 8), far_odd, m[5]));
    }
}

// Bᵀ d B for `lanes` channels of a patch of SIZE×SIZE pixels whose lines start at `lines`.
template <int SIZE>
inline __attribute__((always_inline)) void
input_transform(const float *const *lines, int64_t offset, int64_t pixel, int lanes, V (*to)[SIZE]) {
    V half[SIZE][SIZE]; // [column][row]
#pragma GCC unroll 6
    for (int j = 0; j < SIZE; ++j) {
        V column[SIZE];
#pragma GCC unroll 6
        for (int i = 0; i < SIZE; ++i)
            column[i] = load_lanes(lines[i] + offset + j * pixel, lanes);
        input_transform_1d<SIZE>(column, half[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < SIZE; ++i) {
        V row[SIZE];
#pragma GCC unroll 6
        for (int j = 0; j < SIZE; ++j)
            row[j] = half[j][i];
        input_transform_1d<SIZE>(row, to[i]);
    }
}

// Aᵀ m A: the outputs of a tile, from sums `stride` apart.
template <int SIZE>
inline __attribute__((always_inline)) void
output_transform(const float *sums, int64_t stride, V (*to)[outputs_of(SIZE)]) {
    constexpr int OUTPUTS = outputs_of(SIZE);
    V half[SIZE][OUTPUTS]; // [column][row]
#pragma GCC unroll 6
    for (int j = 0; j < SIZE; ++j) {
        V column[SIZE];
#pragma GCC unroll 6
        for (int i = 0; i < SIZE; ++i)
            column[i] = load(sums + (i * SIZE + j) * stride);
        output_transform_1d<SIZE>(column, half[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < OUTPUTS; ++i) {
        V row[SIZE];
#pragma GCC unroll 6
        for (int j = 0; j < SIZE; ++j)
            row[j] = half[j][i];
        output_transform_1d<SIZE>(row, to[i]);
    }
}

// Stores W channels from channel c on to a row of a packed tile; channels beyond the last group are dropped.
template <class Vector> inline void store_channels(float *row, int64_t c, int64_t channels, Vector v) {
    if constexpr (W == KB)
        store(row + c * MR, v);
    else if constexpr (W < KB)
        store(row + c / KB * (MR * KB) + c % KB, v);
    else if (c + KB < channels)
        store_halves(row + c * MR, row + (c + KB) * MR, v);
    else
        store_n(row + c * MR, v, KB);
}

} // namespace KINEMA_ISA
} // namespace kinema
