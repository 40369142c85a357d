// Attention whose products are of bf16 pairs (bf16.h). Queries, keys, values and weights are rounded once each; logits,
// the softmax and all sums are fp32, a row's sum being that of its rounded weights.
#pragma once

#include <cstdint>
#include <cstring>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

#if defined(__AVX512BF16__)
constexpr bool ATTENTION_IN_BF16 = true;

// Logits of `rows` queries, of rows of whole pairs, with a panel of keys.
inline void
score_bf16(int rows, int columns, const uint16_t *q, int64_t stride, const uint16_t *keys, float scale, float *logits) {
    multiply_bf16(rows, columns, q, PairedRows{stride}, keys, stride, logits, KEY_BLOCK, Scaled{scale});
}

// A head's packed keys are [panel][pair of channels][NR][2], its values [panel of channels][pair of keys][NR][2].
// row: scratch of an even number of channels.
inline void pack_key_bf16(const float *k, int64_t head_dim, int64_t j, uint16_t *row, uint16_t *packed) {
    const int64_t pairs = ceil_div(head_dim, 2);
    row[2 * pairs - 1] = 0;
    round_row(k, head_dim, row);
    uint16_t *key = packed + (j / NR * NR * pairs + j % NR) * 2;
    for (int64_t pair = 0; pair < pairs; ++pair)
        std::memcpy(key + pair * 2 * NR, row + 2 * pair, 2 * sizeof(uint16_t));
}

// Values of keys j, which is even, and j + 1. Behind the last key there may be any: half a pair is multiplied alone.
inline void pack_values_bf16(
    const float *first, const float *second, int64_t head_dim, const AttentionTiling &tiling, int64_t j,
    uint16_t *packed) {
    for (int64_t d = 0; d < head_dim; d += W) {
        const int lanes = static_cast<int>(min(head_dim - d, W));
        uint16_t *to = packed + (d / NR * tiling.keys + j) * NR + d % NR * 2;
        round_pairs(to, load_lanes(first + d, lanes), load_lanes(second + d, lanes));
    }
}

// Turns logits `from` to `end` of a row into weights e^(logit − row_max) in bf16, at the beginning of the same memory,
// and the others of their panels and up to `to` into 0. Returns the sum of the weights.
inline float weigh_bf16(float *row, int64_t from, int64_t end, int64_t to, float row_max) {
    uint16_t *weights = reinterpret_cast<uint16_t *>(row);
    const Bf16Pairs ones = pairs_of_ones();
    const V top = set1(row_max);
    V sums = set1(0.0f);
    int64_t j = from / NR * NR;
    for (int64_t i = j; i < from; ++i)
        row[i] = -__builtin_inff();
    for (int64_t i = end; i < ceil_div(end, NR) * NR; ++i)
        row[i] = -__builtin_inff();
    for (; j < end; j += NR) {
        const V first = softmax_exp(sub(load(row + j), top)), second = softmax_exp(sub(load(row + j + W), top));
        sums = dot_pairs(sums, round_row_pairs(weights + j, first, second), ones);
    }
    if (j < to)
        std::memset(weights + j, 0, (to - j + 1) / 2 * 2 * sizeof(uint16_t));
    return reduce_add(sums);
}

// acc[rows, columns] = acc · alpha + weights · values, over keys `from` to `to` of a block. weights: rows of the
// logits; values: of a panel of channels, from the block's first key on.
inline void add_values_bf16(
    int rows, int columns, const float *weights, const uint16_t *values, int64_t from, int64_t to, float *acc,
    int64_t acc_stride, const float *alpha) {
    const uint16_t *a = reinterpret_cast<const uint16_t *>(weights);
    const PairedRows layout{2 * KEY_BLOCK};
    const int64_t first = ceil_div(from, 2) * 2, last = to / 2 * 2;
    multiply_bf16(
        rows, columns, a + first, layout, values + first * NR, last - first, acc, acc_stride, AddedToScaled{alpha});
    // Half of a pair: the other key is not to be seen, so its value may be NaN, whatever its weight.
    const auto add_half = [&](int64_t key) {
        uint16_t pair[2 * NR] = {};
        for (int64_t c = 0; c < NR; ++c)
            pair[2 * c + key % 2] = values[key / 2 * 2 * NR + 2 * c + key % 2];
        multiply_bf16(rows, columns, a + key / 2 * 2, layout, pair, 2, acc, acc_stride, Accumulated{true});
    };
    if (from != first)
        add_half(from);
    if (to != last)
        add_half(last);
}
#else
constexpr bool ATTENTION_IN_BF16 = false; // and none of these is called

template <class... Args> void score_bf16(const Args &...) {}
template <class... Args> void pack_key_bf16(const Args &...) {}
template <class... Args> void pack_values_bf16(const Args &...) {}
template <class... Args> float weigh_bf16(const Args &...) { return 0.0f; }
template <class... Args> void add_values_bf16(const Args &...) {}
#endif

inline bool in_bf16(const kinema_attention_args &a) { return ATTENTION_IN_BF16 && a.qk_dtype == KINEMA_BF16; }
inline uint16_t *halves(float *x) { return reinterpret_cast<uint16_t *>(x); } // memory of bf16 numbers
inline const uint16_t *halves(const float *x) { return reinterpret_cast<const uint16_t *>(x); }

} // namespace KINEMA_ISA
} // namespace kinema
