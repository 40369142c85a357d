// linear: packs the rows of the product, in fp32 or quantized; epilogue.h finishes its sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// Packs row `row` of a tile: features `at` to `at + count` of its slice of the depth.
inline void pack_row(float *tile, int row, int64_t at, const float *from, int64_t count) {
    float *to = tile + at / KB * (MR * KB) + row * KB;
    int64_t inside = at % KB;
    if (inside != 0) { // up to the next group
        const int64_t here = min(KB - inside, count);
        for (int64_t i = 0; i < here; ++i)
            to[inside + i] = from[i];
        if (here == count)
            return;
        to += MR * KB;
        from += here;
        count -= here;
    }
    for (; count >= KB; count -= KB, from += KB, to += MR * KB)
        std::memcpy(to, from, KB * sizeof(float));
    for (int64_t i = 0; i < count; ++i)
        to[i] = from[i];
}

// The same for codes.
inline void pack_row_codes(uint8_t *tile, int row, const uint8_t *from, int64_t groups) {
    for (int64_t i = 0; i < groups; ++i)
        std::memcpy(tile + (i * I8_ROWS + row) * 4, from + 4 * i, 4);
}

inline int64_t x_row(const kinema_linear_args &args, int64_t m) {
    return m / args.tokens * args.x_stride_b + m % args.tokens * args.x_stride_s;
}

inline int64_t x2_row(const kinema_linear_args &args, int64_t m) {
    return m / args.tokens * args.x2_stride_b + m % args.tokens * args.x2_stride_s;
}

// Calls visit(piece, first feature, length) for features k to k + count of row m in fp32: from up to two sources, or
// from one that is normalised here, with the moments of `row`.
template <class F>
inline void
for_each_piece(const kinema_linear_args &args, int64_t m, int64_t k, int64_t count, const RowScale &row, F visit) {
    const float *x = static_cast<const float *>(args.x);
    if (args.norm != nullptr) {
        float normed[F32_DEPTH];
        x += x_row(args, m) + k;
        for (int64_t at = 0, length; at < count; at += length) {
            length = min(count - at, F32_DEPTH);
            modulate(*args.norm, row.moments, m / args.tokens, m % args.tokens, k + at, length, x + at, normed);
            visit(normed, at, length);
        }
        return;
    }
    if (k < args.x_features)
        visit(x + x_row(args, m) + k, 0, min(count, args.x_features - k));
    if (k + count > args.x_features) {
        const int64_t from = max(k, args.x_features);
        visit(args.x2 + x2_row(args, m) + from - args.x_features, from - k, k + count - from);
    }
}

inline void
pack_f32(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *scales, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    float *tile = static_cast<float *>(to);
    for (int r = 0; r < count; ++r)
        for_each_piece(args, m + r, k, depth, scales[r], [&](const float *from, int64_t at, int64_t length) {
            pack_row(tile, r, at, from, length);
        });
}

// 8-bit x, converted to fp32: its scale is applied to the sums.
inline void
pack_as_fp32(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    float converted[F32_DEPTH];
    uint8_t codes[F32_DEPTH + W];
    for (int r = 0; r < count; ++r) {
        std::memcpy(codes, static_cast<const uint8_t *>(args.x) + x_row(args, m + r) + k, depth);
        std::memset(codes + depth, 0, W);
        for (int64_t i = 0; i < depth; i += W)
            if (args.x_dtype == KINEMA_E4M3)
                store_n(converted + i, load_e4m3(codes + i), static_cast<int>(min(depth - i, W)));
            else
                store_n(
                    converted + i, load_i8(reinterpret_cast<int8_t *>(codes) + i), static_cast<int>(min(depth - i, W)));
        pack_row(static_cast<float *>(to), r, 0, converted, depth);
    }
}

// int8 x as unsigned codes: 0 becomes 128.
inline void pack_i8(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    uint8_t row[I8_DEPTH];
    for (int r = 0; r < count; ++r) {
        std::memcpy(row, static_cast<const int8_t *>(args.x) + x_row(args, m + r) + k, depth);
        for (int64_t i = 0; i < depth; ++i)
            row[i] ^= 0x80u;
        std::memset(row + depth, 0, ceil_div(depth, 4) * 4 - depth);
        pack_row_codes(static_cast<uint8_t *>(to), r, row, ceil_div(depth, 4));
    }
}

inline Moments row_moments(const kinema_linear_args &args, int64_t m) {
    if (args.norm == nullptr)
        return {};
    const float *x = static_cast<const float *>(args.x) + x_row(args, m);
    return moments(x, args.in_features, args.norm->kind, args.norm->eps);
}

inline void load_scales(const void *source, int64_t m, int64_t count, RowScale *scales) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    for (int64_t r = 0; r < count; ++r)
        scales[r] = {args.x_scale != nullptr ? args.x_scale[m + r] : 1.0f, 128, row_moments(args, m + r)};
}

// ---- fp32 rows that are quantized first: steps from a row's minimum to its maximum, zero included

inline RowScale choose_scale(float low, float high) {
    const float range = high - low > 1e-12f ? high - low : 1e-12f, scale = range / CODE_MAX;
    const float zero_point = std::nearbyintf(-low / scale);
    return {scale, zero_point > 0.0f ? static_cast<int32_t>(zero_point) : 0}; // 0 also where infinities made it NaN
}

inline void compute_scales(const void *source, int64_t m, int64_t count, RowScale *scales) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    for (int64_t r = 0; r < count; ++r) {
        V low = set1(0.0f), high = low, non_finite = low; // non_finite: NaN after any NaN or infinity
        scales[r].moments = row_moments(args, m + r);
        for_each_piece(args, m + r, 0, args.in_features, scales[r], [&](const float *from, int64_t, int64_t length) {
            for (int64_t i = 0; i < length; i += W) {
                const V x = length - i >= W ? load(from + i) : load_n(from + i, static_cast<int>(length - i));
                low = vmin(x, low);
                high = vmax(x, high);
                non_finite = fma(x, set1(0.0f), non_finite);
            }
        });
        const RowScale codes = choose_scale(-reduce_max(sub(set1(0.0f), low)), reduce_max(high));
        scales[r].scale = codes.scale + reduce_add(non_finite); // makes the scale NaN: codes cannot represent it
        scales[r].zero_point = codes.zero_point;
    }
}

// to[i] = x[i] / scale + zero_point, rounded to nearest; `to` is written in whole vectors
inline void quantize_asymmetric(const float *x, RowScale row, int64_t count, uint8_t *to) {
    const V inverse = set1(1.0f / row.scale), zero_point = set1(static_cast<float>(row.zero_point));
    const V upper = set1(static_cast<float>(CODE_MAX)), lower = set1(0.0f);
    for (int64_t i = 0; i < count; i += W) {
        const V v = count - i >= W ? load(x + i) : load_n(x + i, static_cast<int>(count - i));
        store_codes(to + i, vmin(vmax(fma(v, inverse, zero_point), lower), upper));
    }
}

inline void
pack_quantized(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *scales, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    uint8_t row[I8_DEPTH + W];
    for (int r = 0; r < count; ++r) {
        for_each_piece(args, m + r, k, depth, scales[r], [&](const float *from, int64_t at, int64_t length) {
            quantize_asymmetric(from, scales[r], length, row + at);
        });
        std::memset(row + depth, 0, ceil_div(depth, 4) * 4 - depth);
        pack_row_codes(static_cast<uint8_t *>(to), r, row, ceil_div(depth, 4));
    }
}

// ---- fp32 rows that are cast to bf16 first

#if defined(__AVX512BF16__)
inline void
pack_bf16_pairs(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *scales, void *to) {
    static_assert(MR == I8_ROWS, "a pair is placed as four codes are");
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    uint16_t row[BF16_DEPTH + W];
    for (int r = 0; r < count; ++r) {
        for_each_piece(args, m + r, k, depth, scales[r], [&](const float *from, int64_t at, int64_t length) {
            for (int64_t i = 0; i < length; i += W)
                store_bf16(row + at + i, load_lanes(from + i, static_cast<int>(min(length - i, W))));
        });
        row[depth] = 0; // pads the last pair of an odd depth
        pack_row_codes(static_cast<uint8_t *>(to), r, reinterpret_cast<const uint8_t *>(row), ceil_div(depth, 2));
    }
}
#endif

// x rounded to bf16, as fp32; NaN stays NaN
inline float round_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    bits &= 0xffff0000u;
    float rounded;
    std::memcpy(&rounded, &bits, sizeof rounded);
    return x == x ? rounded : x;
}

// The same numbers (except subnormals) for a product in fp32.
inline void pack_bf16_as_fp32(
    const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *scales, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    float rounded[F32_DEPTH];
    for (int r = 0; r < count; ++r)
        for_each_piece(args, m + r, k, depth, scales[r], [&](const float *from, int64_t at, int64_t length) {
            for (int64_t i = 0; i < length; ++i)
                rounded[i] = round_to_bf16(from[i]);
            pack_row(static_cast<float *>(to), r, at, rounded, length);
        });
}

inline auto bf16_pack() {
#if defined(__AVX512BF16__)
    return pack_bf16_pairs;
#else
    return pack_bf16_as_fp32;
#endif
}

inline GemmProblem linear_gemm(const kinema_linear_args &args) {
    GemmProblem p{};
    p.rows = args.batch * args.tokens;
    p.columns = args.out_features;
    p.depth = args.in_features;
    p.weight = args.weight;
    p.dtype = args.weight_dtype;
    p.gated = args.gated != 0;
    // int8 input may hold any 8-bit code; where those do not fit, it is converted to fp32
    p.use_i8 = args.weight_dtype == KINEMA_I8 && (args.quantize != 0 || (args.x_dtype == KINEMA_I8 && CODE_MAX == 255));
    const bool casts_to_bf16 = args.quantize != 0 && args.weight_dtype != KINEMA_I8;
    p.use_bf16 = casts_to_bf16 && BF16_GROUP == 2;
    p.threads = args.threads > 1 ? args.threads : 1;
    p.workspace = static_cast<char *>(args.workspace);
    p.prepare = args.quantize != 0 && !casts_to_bf16 ? compute_scales : load_scales;
    p.pack = casts_to_bf16                ? bf16_pack()
             : args.quantize != 0         ? pack_quantized
             : p.use_i8                   ? pack_i8
             : args.x_dtype == KINEMA_F32 ? pack_f32
                                          : pack_as_fp32;
    p.prefetch = prefetch_results;
    p.finish = p.use_i8 ? finish<int32_t> : finish<float>;
    p.source = &args;
    return p;
}

inline int64_t linear_workspace(const kinema_linear_args &args) { return gemm_workspace(linear_gemm(args)); }

inline void linear(const kinema_linear_args &args, Call &call) { multiply(linear_gemm(args), call); }

} // namespace KINEMA_ISA
} // namespace kinema
