// Attention logits from int8 queries and keys: Zhang et al. 2024 (SageAttention, arXiv 2410.02367).
//
// The mean of a head's keys adds the same to all logits of a query, which a softmax cancels: without it the keys
// quantize in finer steps.
#pragma once

#include <cstdint>
#include <cstring>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// Codes are -LOGIT_CODE_MAX to LOGIT_CODE_MAX, a query's shifted to start at 0: then the sum of two products always
// fits the 16 bits of maddubs, which would saturate: 2 · 180 · 90 = 32400.
constexpr int LOGIT_CODE_MAX = 90;
static_assert(2 * (2 * LOGIT_CODE_MAX) * LOGIT_CODE_MAX <= INT16_MAX, "products of two codes saturate");
static_assert(MR % I8_ROWS == 0, "codes of a block of queries take no more tiles than its numbers");

// A head's packed int8 keys.
struct QuantizedKeys {
    int8_t *codes; // [panel][four channels][NR][4]
    float *scale;  // [keys]
    float *offset; // [keys], subtracted from the sums of products, since a query's codes start at 0
    QuantizedKeys(const AttentionTiling &tiling, float *packed)
        : codes(reinterpret_cast<int8_t *>(packed)), scale(packed + tiling.keys * tiling.code_groups),
          offset(scale + tiling.keys) {}
};

// Quantizes x[count] in steps of max|x| / LOGIT_CODE_MAX, to codes of 0 to 2·LOGIT_CODE_MAX. Returns the step, or NaN
// if any number is not finite, which no code can represent. x is read and codes are written in whole vectors.
inline float quantize_symmetric(const float *x, int64_t count, uint8_t *codes) {
    const V lower = set1(0.0f), center = set1(LOGIT_CODE_MAX), upper = set1(2 * LOGIT_CODE_MAX);
    V peak = lower, non_finite = lower;
    for (int64_t i = 0; i < count; i += W) {
        peak = vmax(vabs(load(x + i)), peak);
        non_finite = fma(load(x + i), set1(0.0f), non_finite);
    }
    const float absmax = reduce_max(peak), scale = (absmax > 1e-12f ? absmax : 1e-12f) / LOGIT_CODE_MAX;
    for (int64_t i = 0; i < count; i += W)
        store_codes(codes + i, vmin(vmax(add(vround(div(load(x + i), set1(scale))), center), lower), upper));
    return scale + reduce_add(non_finite);
}

// The sum of keys `from` to `to` of a head, skipping non-finite numbers: only keys that no query sees may hold them.
inline void sum_keys(
    const kinema_attention_args &a, const ValidKeys &valid, int64_t b, int64_t n, int64_t from, int64_t to, float *row,
    double *sums) {
    for (int64_t d = 0; d < a.head_dim; ++d)
        sums[d] = 0.0;
    for (int64_t j = from; j < min(to, valid.total); ++j) {
        const float *k = read_key(a, valid, b, n, j, row);
        for (int64_t d = 0; d < a.head_dim; ++d)
            sums[d] += k[d] - k[d] == 0.0f ? k[d] : 0.0f;
    }
}

// sums: [chunks][channels]
inline void mean_key(const double *sums, int64_t chunks, int64_t count, int64_t head_dim, float *mean) {
    for (int64_t d = 0; d < head_dim; ++d) {
        double sum = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
            sum += sums[chunk * head_dim + d];
        mean[d] = static_cast<float>(sum / static_cast<double>(max(1, count)));
    }
}

// Packs key j of a head minus the mean. row, codes: `tiling.width` of each, row zero-padded.
inline void pack_key_i8(
    const float *k, const float *mean, int64_t head_dim, const AttentionTiling &tiling, int64_t j, float *row,
    uint8_t *codes, float *packed) {
    const QuantizedKeys keys(tiling, packed);
    int8_t *to = keys.codes + (j / NR * NR * tiling.code_groups + j % NR) * 4;
    for (int64_t d = 0; d < head_dim; ++d)
        row[d] = k[d] - mean[d];
    keys.scale[j] = quantize_symmetric(row, head_dim, codes);
    int32_t sum = 0;
    for (int64_t d = 0; d < 4 * tiling.code_groups; ++d) {
        sum += codes[d] - LOGIT_CODE_MAX;
        codes[d] = static_cast<uint8_t>(codes[d] - LOGIT_CODE_MAX);
    }
    keys.offset[j] = static_cast<float>(LOGIT_CODE_MAX * sum);
    for (int64_t group = 0; group < tiling.code_groups; ++group)
        std::memcpy(to + group * NR * 4, codes + group * 4, 4);
}

// Logits of `rows` queries, a tile of codes, with a panel of keys. q_scale: a query's step times the scale of all
// logits.
inline void score_i8(
    int rows, const uint8_t *q, const float *q_scale, const QuantizedKeys &keys, int64_t panel, int64_t groups,
    float *logits, int64_t stride) {
    int32_t sums[I8_ROWS * NR];
    multiply_i8(rows, q, keys.codes + panel * groups * NR * 4, groups * 4, sums, false);
    for (int64_t at = 0; at < NR; at += W) {
        const V scale = load(keys.scale + panel * NR + at), offset = load(keys.offset + panel * NR + at);
        for (int r = 0; r < rows; ++r) {
            const V products = sub(load_i32(sums + r * NR + at), offset);
            store(logits + r * stride + at, mul(mul(products, scale), set1(q_scale[r])));
        }
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
