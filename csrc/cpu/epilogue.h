// What becomes of a tile of sums: scales, bias, activation, gate and residual, on their way to the result.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// One vector of a row's sums; of codes less what their zero adds to each. columns: the sums of the weight's columns,
// from c on.
inline V sums_at(const float *sums, const int32_t *, int64_t, int32_t) { return load(sums); }
inline V sums_at(const int32_t *sums, const int32_t *columns, int64_t c, int32_t zero) {
    return load_less(sums, columns + c, zero);
}

// One vector of (Σ · row scale) · column scale + bias; index: of the row of the weight.
template <class C>
inline V projected(
    const kinema_linear_args &args, const C *sums, const int32_t *columns, int64_t c, RowScale row, int64_t index,
    int lanes) {
    V y = mul(sums_at(sums, columns, c, row.zero), set1(row.scale));
    if (args.weight_scale != nullptr)
        y = mul(y, lanes == W ? load(args.weight_scale + index) : load_n(args.weight_scale + index, lanes));
    if (args.bias != nullptr)
        y = add(y, lanes == W ? load(args.bias + index) : load_n(args.bias + index, lanes));
    return y;
}

// Where the rows of a tile from m on lie in what is read and written with it, at column n.
struct Rows {
    const kinema_linear_args &args;
    int64_t n, b, s;

    Rows(const kinema_linear_args &given, int64_t m, int64_t column)
        : args(given), n(column), b(m / given.tokens), s(m % given.tokens) {}
    void next() { // a division for every row would be felt
        if (++s == args.tokens) {
            s = 0;
            ++b;
        }
    }
    float *out() const { return args.out + b * args.out_stride_b + s * args.out_stride_s + n; }
    const float *gate() const {
        return args.gate == nullptr
                   ? nullptr
                   : args.gate + b * args.gate_stride_b + s / args.gate_tokens * args.gate_stride_g + n;
    }
    const float *residual() const {
        return args.residual == nullptr ? nullptr
                                        : args.residual + b * args.residual_stride_b + s * args.residual_stride_s + n;
    }
};

// Brings a tile's part of the results, and of what is added to them, into the cache.
inline void fetch_results(const void *source, int64_t m, int count, int64_t n) {
    Rows rows(*static_cast<const kinema_linear_args *>(source), m, n);
    for (int r = 0; r < count; ++r, rows.next()) {
        const float *out = rows.out(), *residual = rows.residual();
        for (int c = 0; c < NR; c += 16) { // a cache line
            __builtin_prefetch(ahead_of(out, c * 4), 1, 3);
            if (residual != nullptr)
                __builtin_prefetch(ahead_of(residual, c * 4), 0, 3);
        }
    }
}

// A whole tile of a weight that is not gated: what belongs to its columns is loaded once.
template <class C, bool SCALED, class F>
inline __attribute__((always_inline)) void
finish_whole(Rows rows, const C *sums, int count, const int32_t *column_sums, const RowScale *scales, F activation) {
    const kinema_linear_args &args = rows.args;
    V scale[2], bias[2];
    for (int half = 0; half < 2; ++half) {
        const int64_t at = rows.n + half * W;
        scale[half] = args.weight_scale != nullptr ? load(args.weight_scale + at) : set1(1.0f);
        bias[half] = args.bias != nullptr ? load(args.bias + at) : set1(0.0f);
    }
    for (int r = 0; r < count; ++r, sums += NR, rows.next()) {
        float *out = rows.out();
        const float *gate = rows.gate(), *residual = rows.residual();
        for (int half = 0; half < 2; ++half) {
            V y = sums_at(sums + half * W, column_sums, half * W, scales[r].zero);
            if (SCALED)
                y = mul(mul(y, set1(scales[r].scale)), scale[half]);
            y = activation(add(y, bias[half]));
            if (gate != nullptr)
                y = mul(y, load(gate + half * W));
            if (residual != nullptr)
                y = add(load(residual + half * W), y);
            store(out + half * W, y);
        }
    }
}

template <class C, bool SCALED>
void finish_whole(Rows rows, const C *sums, int count, const int32_t *column_sums, const RowScale *scales) {
    switch (rows.args.activation) {
    case KINEMA_GELU:
        return finish_whole<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return activated(v, KINEMA_GELU); });
    case KINEMA_GELU_TANH:
        return finish_whole<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return activated(v, KINEMA_GELU_TANH); });
    case KINEMA_QUICK_GELU:
        return finish_whole<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return activated(v, KINEMA_QUICK_GELU); });
    case KINEMA_SILU:
        return finish_whole<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return activated(v, KINEMA_SILU); });
    default:
        return finish_whole<C, SCALED>(rows, sums, count, column_sums, scales, [](V v) { return v; });
    }
}

template <class C>
void finish(
    const void *source, const void *tile, const void *gate_tile, int64_t m, int count, int64_t n, int columns,
    const RowScale *scales) {
    constexpr bool IN_CODES = std::is_same<C, int32_t>::value;
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    const int64_t value = gate_tile != nullptr ? args.out_features : 0; // a value's row of scale and bias
    const C *sums = static_cast<const C *>(tile), *gate_sums = static_cast<const C *>(gate_tile);
    const int32_t *column_sums = nullptr;
    if (IN_CODES)
        column_sums = reinterpret_cast<const int32_t *>(
                          static_cast<const char *>(args.weight) +
                          column_sums_at(args.in_features, args.out_features, args.gated)) +
                      (gate_tile != nullptr ? 2 * n + NR : n);
    Rows rows(args, m, n);
    if (columns == NR && gate_tile == nullptr) {
        if (IN_CODES || args.x_scale != nullptr || args.weight_scale != nullptr)
            finish_whole<C, true>(rows, sums, count, column_sums, scales);
        else
            finish_whole<C, false>(rows, sums, count, column_sums, scales);
        return;
    }
    for (int r = 0; r < count; ++r, rows.next()) {
        float *out = rows.out();
        const float *gate = rows.gate(), *residual = rows.residual();
        for (int c = 0; c < columns; c += W) {
            const int lanes = columns - c < W ? columns - c : W;
            const int64_t at = r * NR + c;
            V y = projected(args, sums + at, column_sums, c, scales[r], value + n + c, lanes);
            if (gate_tile == nullptr)
                y = activated(y, args.activation);
            else
                y = mul(
                    activated(
                        projected(args, gate_sums + at, column_sums, c - NR, scales[r], n + c, lanes), args.activation),
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

} // namespace KINEMA_ISA
} // namespace kinema
