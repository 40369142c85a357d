// linear: the rows that a product reads, and what it does to a tile of sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kinema.h"
#include "pool.h"

namespace kinema {
namespace KINEMA_ISA {

// Row `row` of a tile: features `at` to `at + count` of its slice of the depth.
inline void place(float *tile, int row, int64_t at, const float *from, int64_t count) {
    float *to = tile + at / KB * (MR * KB) + row * KB;
    int64_t inside = at % KB;
    if (inside != 0) { // up to the next group
        const int64_t here = least(KB - inside, count);
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

// Row `row` of a tile of int8: groups of four sizes and four masks, and the sum of the negative sizes behind them all.
inline void place_i8(int8_t *tile, int row, const int8_t *from, int64_t groups) {
    int8_t size[I8_DEPTH], mask[I8_DEPTH];
    int32_t negative = 0;
    for (int64_t i = 0; i < 4 * groups; ++i) {
        mask[i] = static_cast<int8_t>(from[i] < 0 ? -1 : 0);
        size[i] = static_cast<int8_t>((from[i] ^ mask[i]) - mask[i]);
        negative += size[i] & mask[i];
    }
    for (int64_t i = 0; i < groups; ++i) {
        int8_t *to = tile + (i * I8_ROWS + row) * 8;
        std::memcpy(to, size + 4 * i, 4);
        std::memcpy(to + 4, mask + 4 * i, 4);
    }
    std::memcpy(tile + groups * I8_ROWS * 8 + 4 * row, &negative, 4);
}

inline int64_t x_row(const kinema_linear_args &args, int64_t m) {
    return m / args.tokens * args.x_stride_b + m % args.tokens * args.x_stride_s;
}

inline int64_t x2_row(const kinema_linear_args &args, int64_t m) {
    return m / args.tokens * args.x2_stride_b + m % args.tokens * args.x2_stride_s;
}

// Features k to k + count of row m in fp32, in up to two pieces: (piece, its first feature, its length).
template <class F>
inline void pieces(const kinema_linear_args &args, int64_t m, int64_t k, int64_t count, F each_piece) {
    const float *x = static_cast<const float *>(args.x);
    if (k < args.x_features)
        each_piece(x + x_row(args, m) + k, 0, least(count, args.x_features - k));
    if (k + count > args.x_features) {
        const int64_t from = most(k, args.x_features);
        each_piece(args.x2 + x2_row(args, m) + from - args.x_features, from - k, k + count - from);
    }
}

inline void pack_f32(const void *source, int64_t m, int count, int64_t k, int64_t depth, const float *, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    float *tile = static_cast<float *>(to);
    for (int r = 0; r < count; ++r)
        pieces(args, m + r, k, depth, [&](const float *from, int64_t at, int64_t length) {
            place(tile, r, at, from, length);
        });
}

// x in 8 bits, widened: its scale is applied to the sums.
inline void pack_wide(const void *source, int64_t m, int count, int64_t k, int64_t depth, const float *, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    float wide[F32_DEPTH];
    uint8_t codes[F32_DEPTH + W];
    for (int r = 0; r < count; ++r) {
        std::memcpy(codes, static_cast<const uint8_t *>(args.x) + x_row(args, m + r) + k, depth);
        std::memset(codes + depth, 0, W);
        for (int64_t i = 0; i < depth; i += W)
            if (args.x_dtype == KINEMA_E4M3)
                store_n(wide + i, widen_e4m3(codes + i), static_cast<int>(least(depth - i, W)));
            else
                store_n(
                    wide + i, widen_i8(reinterpret_cast<int8_t *>(codes) + i), static_cast<int>(least(depth - i, W)));
        place(static_cast<float *>(to), r, 0, wide, depth);
    }
}

inline void pack_i8(const void *source, int64_t m, int count, int64_t k, int64_t depth, const float *, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    int8_t row[I8_DEPTH];
    for (int r = 0; r < count; ++r) {
        std::memcpy(row, static_cast<const int8_t *>(args.x) + x_row(args, m + r) + k, depth);
        std::memset(row + depth, 0, ceil_div(depth, 4) * 4 - depth);
        place_i8(static_cast<int8_t *>(to), r, row, ceil_div(depth, 4));
    }
}

// ---- fp32 rows that become int8 first: scale = max(max|x|, 1e-12) / 127

inline float largest(const float *x, int64_t count) {
    V size = set1(0.0f);
    int64_t i = 0;
    for (; i + W <= count; i += W)
        size = vmax(vabs(load(x + i)), size);
    if (i < count)
        size = vmax(vabs(load_n(x + i, static_cast<int>(count - i))), size);
    return max(size);
}

inline void row_scales(const void *source, int64_t m, int64_t count, float *row_scale) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    for (int64_t r = 0; r < count; ++r) {
        float size = 1e-12f;
        pieces(args, m + r, 0, args.in_features, [&](const float *from, int64_t, int64_t length) {
            const float here = largest(from, length);
            size = here > size ? here : size;
        });
        row_scale[r] = size / 127.0f;
    }
}

inline void given_scales(const void *source, int64_t m, int64_t count, float *row_scale) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    for (int64_t r = 0; r < count; ++r)
        row_scale[r] = args.x_scale != nullptr ? args.x_scale[m + r] : 1.0f;
}

// to[i] = x[i] / scale to the nearest whole number, to even
inline void quantize_i8(const float *x, float scale, int64_t count, int8_t *to) {
    const V divisor = set1(scale), limit = set1(127.0f), lower = set1(-127.0f);
    float steps[64];
    for (int64_t i = 0; i < count; i += 64) {
        const int64_t here = least(count - i, 64);
        for (int64_t j = 0; j < here; j += W) {
            const int lanes = static_cast<int>(least(here - j, W));
            const V given = lanes == W ? load(x + i + j) : load_n(x + i + j, lanes);
            store(steps + j, round_small(vmin(limit, vmax(lower, div(given, divisor)))));
        }
        for (int64_t j = 0; j < here; ++j)
            to[i + j] = static_cast<int8_t>(static_cast<int32_t>(steps[j]));
    }
}

inline void
pack_quantized(const void *source, int64_t m, int count, int64_t k, int64_t depth, const float *row_scale, void *to) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    int8_t row[I8_DEPTH];
    for (int r = 0; r < count; ++r) {
        pieces(args, m + r, k, depth, [&](const float *from, int64_t at, int64_t length) {
            quantize_i8(from, row_scale[r], length, row + at);
        });
        std::memset(row + depth, 0, ceil_div(depth, 4) * 4 - depth);
        place_i8(static_cast<int8_t *>(to), r, row, ceil_div(depth, 4));
    }
}

// ---- the epilogue

inline V sums_at(const float *p) { return load(p); }
inline V sums_at(const int32_t *p) { return load_i32(p); }

// One vector of (Σ · row scale) · column scale + bias; index: of the row of the weight.
template <class C>
inline V projected(const kinema_linear_args &args, const C *sums, V row_scale, int64_t index, int lanes) {
    V y = mul(sums_at(sums), row_scale);
    if (args.weight_scale != nullptr)
        y = mul(y, lanes == W ? load(args.weight_scale + index) : load_n(args.weight_scale + index, lanes));
    if (args.bias != nullptr)
        y = add(y, lanes == W ? load(args.bias + index) : load_n(args.bias + index, lanes));
    return y;
}

// The most common end of a product, and the one that is felt where the depth is small: patches, a fused projection.
inline bool only_biased(const kinema_linear_args &args) {
    return args.x_scale == nullptr && args.weight_scale == nullptr && args.activation == KINEMA_NONE &&
           args.gate == nullptr && args.residual == nullptr && args.gated == 0 && args.quantize == 0;
}

// Brings a tile's part of the results, and of what is added to them, into the cache.
inline void fetch_results(const void *source, int64_t m, int count, int64_t n) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    int64_t b = m / args.tokens, s = m % args.tokens;
    for (int r = 0; r < count; ++r, ++s) {
        if (s == args.tokens) {
            s = 0;
            ++b;
        }
        const float *out = args.out + b * args.out_stride_b + s * args.out_stride_s + n;
        __builtin_prefetch(out, 1, 3);
        if (NR > 16)
            __builtin_prefetch(out + 16, 1, 3);
        if (args.residual != nullptr) {
            const float *residual = args.residual + b * args.residual_stride_b + s * args.residual_stride_s + n;
            __builtin_prefetch(residual, 0, 3);
            if (NR > 16)
                __builtin_prefetch(residual + 16, 0, 3);
        }
    }
}

template <class C>
void finish(
    const void *source, const void *tile, const void *gate_tile, int64_t m, int count, int64_t n, int columns,
    const float *row_scale) {
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    const int64_t value = gate_tile != nullptr ? args.out_features : 0; // a value's row of scale and bias
    int64_t b = m / args.tokens, s = m % args.tokens;
    if (std::is_same<C, float>::value && only_biased(args) && columns == NR) {
        const V left = args.bias != nullptr ? load(args.bias + n) : set1(0.0f);
        const V right = args.bias != nullptr ? load(args.bias + n + W) : set1(0.0f);
        const float *sums = static_cast<const float *>(tile);
        for (int r = 0; r < count; ++r, ++s, sums += NR) {
            if (s == args.tokens) {
                s = 0;
                ++b;
            }
            float *out = args.out + b * args.out_stride_b + s * args.out_stride_s + n;
            store(out, add(load(sums), left));
            store(out + W, add(load(sums + W), right));
        }
        return;
    }
    for (int r = 0; r < count; ++r, ++s) {
        if (s == args.tokens) { // the next sample; a division for every row would be felt
            s = 0;
            ++b;
        }
        float *out = args.out + b * args.out_stride_b + s * args.out_stride_s + n;
        const float *gate = nullptr, *residual = nullptr;
        if (args.gate != nullptr)
            gate = args.gate + b * args.gate_stride_b + s / args.gate_tokens * args.gate_stride_g + n;
        if (args.residual != nullptr)
            residual = args.residual + b * args.residual_stride_b + s * args.residual_stride_s + n;
        const V scale = set1(row_scale[r]);
        for (int c = 0; c < columns; c += W) {
            const int lanes = columns - c < W ? columns - c : W;
            const int64_t at = r * NR + c;
            V y = projected(args, static_cast<const C *>(tile) + at, scale, value + n + c, lanes);
            if (gate_tile == nullptr)
                y = activated(y, args.activation);
            else
                y = mul(
                    activated(
                        projected(args, static_cast<const C *>(gate_tile) + at, scale, n + c, lanes), args.activation),
                    y);
            if (gate != nullptr)
                y = mul(y, lanes == W ? load(gate + c) : load_n(gate + c, lanes));
            if (residual != nullptr)
                y = add(lanes == W ? load(residual + c) : load_n(residual + c, lanes), y);
            if (lanes == W)
                store(out + c, y);
            else
                store_n(out + c, y, lanes);
        }
    }
}

inline Product linear_product(const kinema_linear_args &args) {
    Product p{};
    p.rows = args.batch * args.tokens;
    p.columns = args.out_features;
    p.depth = args.in_features;
    p.weight = args.weight;
    p.dtype = args.weight_dtype;
    p.gated = args.gated != 0;
    p.in_int8 = args.weight_dtype == KINEMA_I8 && (args.quantize != 0 || args.x_dtype == KINEMA_I8);
    p.threads = args.threads > 1 ? args.threads : 1;
    p.workspace = static_cast<char *>(args.workspace);
    p.prepare = args.quantize != 0 ? row_scales : given_scales;
    p.pack = args.quantize != 0           ? pack_quantized
             : p.in_int8                  ? pack_i8
             : args.x_dtype == KINEMA_F32 ? pack_f32
                                          : pack_wide;
    p.fetch = fetch_results;
    p.finish = p.in_int8 ? finish<int32_t> : finish<float>;
    p.source = &args;
    return p;
}

inline int64_t linear_workspace(const kinema_linear_args &args) { return product_workspace(linear_product(args)); }

inline void linear(const kinema_linear_args &args, Pool &pool) { multiply(linear_product(args), pool); }

} // namespace KINEMA_ISA
} // namespace kinema
