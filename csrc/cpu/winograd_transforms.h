// The transforms of Winograd's F(2×2, 3×3) (Lavin and Gray 2016, arXiv 1509.09308): y = Aᵀ[(G g Gᵀ) ∘ (Bᵀ d B)]A.
//
// g: 3×3 taps, transformed when the weight is packed; d: a patch of 4×4 inputs; y: a tile of 2×2 outputs. ∘ is the
// product of the 16 places, each for itself: winograd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t PLACES = 16; // of a transformed patch

inline int64_t whole_groups(int64_t channels) { return ceil_div(channels, KB) * KB; }

// ---- the weight: [16 places][panels][taps of time · channels, whole groups of them][NR]

inline int64_t winograd_packed_bytes(int64_t in_channels, int64_t out_channels, int64_t kernel_t) {
    return PLACES * packed_bytes(kernel_t * whole_groups(in_channels), out_channels, KINEMA_F32, 0);
}

// weight: [out_channels, kernel_t, 3, 3, in_channels]. Transformed in float64 and rounded once.
inline void
winograd_pack(int64_t in_channels, int64_t out_channels, int64_t kernel_t, const float *weight, void *packed) {
    static const double G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    const int64_t panels = ceil_div(out_channels, NR), depth = kernel_t * whole_groups(in_channels);
    float *to = static_cast<float *>(packed);
    std::memset(to, 0, winograd_packed_bytes(in_channels, out_channels, kernel_t));
    for (int64_t n = 0; n < out_channels; ++n)
        for (int64_t tap = 0; tap < kernel_t; ++tap)
            for (int64_t c = 0; c < in_channels; ++c) {
                const float *taps = weight + (n * kernel_t + tap) * 9 * in_channels + c;
                for (int64_t place = 0; place < PLACES; ++place) {
                    double sum = 0;
                    for (int i = 0; i < 3; ++i)
                        for (int j = 0; j < 3; ++j)
                            sum += G[place / 4][i] * G[place % 4][j] * taps[(i * 3 + j) * in_channels];
                    const int64_t k = tap * whole_groups(in_channels) + c;
                    to[((place * panels + n / NR) * depth + k) * NR + n % NR] = static_cast<float>(sum);
                }
            }
}

// ---- the transforms

// Bᵀ of four numbers in a row. Of three, each but the last two of which was doubled (a, b, b, c): the third is zero.
inline void patch_row(const V *d, V *to) {
    to[0] = sub(d[0], d[2]);
    to[1] = add(d[1], d[2]);
    to[2] = sub(d[2], d[1]);
    to[3] = sub(d[1], d[3]);
}
inline void patch_row_doubled(const V *d, V *to) {
    to[0] = sub(d[0], d[1]);
    to[1] = add(d[1], d[1]);
    to[2] = sub(d[1], d[2]);
}

// Bᵀ d B of `lanes` channels of a patch of SIZE×SIZE pixels whose lines begin at `lines`.
template <int SIZE>
inline __attribute__((always_inline)) void
transform_patch(const float *const *lines, int64_t offset, int64_t pixel, int lanes, V (*to)[SIZE]) {
    V half[SIZE][SIZE]; // [column][row]
#pragma GCC unroll 4
    for (int j = 0; j < SIZE; ++j) {
        V column[SIZE];
#pragma GCC unroll 4
        for (int i = 0; i < SIZE; ++i)
            column[i] = load_some(lines[i] + offset + j * pixel, lanes);
        SIZE == 4 ? patch_row(column, half[j]) : patch_row_doubled(column, half[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < SIZE; ++i) {
        V row[SIZE];
#pragma GCC unroll 4
        for (int j = 0; j < SIZE; ++j)
            row[j] = half[j][i];
        SIZE == 4 ? patch_row(row, to[i]) : patch_row_doubled(row, to[i]);
    }
}

// Aᵀ m A: the four outputs of a tile, from sums that lie `stride` apart.
template <int SIZE>
inline __attribute__((always_inline)) void transform_sums(const float *sums, int64_t stride, V (*to)[2]) {
    V half[2][SIZE];
#pragma GCC unroll 4
    for (int j = 0; j < SIZE; ++j) {
        const V first = load(sums + j * stride), second = load(sums + (SIZE + j) * stride);
        const V third = load(sums + (2 * SIZE + j) * stride);
        if (SIZE == 4) {
            half[0][j] = add(add(first, second), third);
            half[1][j] = sub(sub(second, third), load(sums + (3 * SIZE + j) * stride));
        } else {
            half[0][j] = add(first, second);
            half[1][j] = sub(second, third);
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        to[i][0] = add(half[i][0], half[i][1]);
        to[i][1] = sub(half[i][1], half[i][2]);
        if (SIZE == 4) {
            to[i][0] = add(to[i][0], half[i][2]);
            to[i][1] = sub(to[i][1], half[i][SIZE - 1]);
        }
    }
}

// W channels from channel c on, of a row of a packed tile; what lies behind the last group of channels is dropped.
inline void place_channels(float *row, int64_t c, int64_t channels, V v) {
    if constexpr (W == KB)
        store(row + c * MR, v);
    else if constexpr (W < KB)
        store(row + c / KB * (MR * KB) + c % KB, v);
    else {
        float lanes[W];
        store(lanes, v);
        for (int64_t i = 0; i < W && c + i < channels; i += KB)
            std::memcpy(row + (c + i) * MR, lanes + i, KB * sizeof(float));
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
