// The epilogue of a tile of sums: scales, bias, activation, gate and residual, then the store.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// One vector of a row's sums; for quantized rows minus the contribution of the zero point. columns: the column sums of
// the weight, from c on.
inline V load_sums(const float *sums, const int32_t *, int64_t, int32_t) { return load(sums); }
inline V load_sums(const int32_t *sums, const int32_t *columns, int64_t c, int32_t zero_point) {
    return load_minus_zero_point(sums, columns + c, zero_point);
}

// One vector of (Σ · row scale) · column scale + bias; index: the row of the weight.
template <class C>
inline V scale_and_bias(
    const kinema_linear_args &args, const C *sums, const int32_t *columns, int64_t c, RowScale row, int64_t index,
    int lanes) {
    V y = mul(load_sums(sums, columns, c, row.zero_point), set1(row.scale));
    if (args.weight_scale != nullptr)
        y = mul(y, lanes == W ? load(args.weight_scale + index) : load_n(args.weight_scale + index, lanes));
    if (args.bias != nullptr)
        y = add(y, lanes == W ? load(args.bias + index) : load_n(args.bias + index, lanes));
    return y;
}

// Addresses of a tile's rows, from row m and column n on, in the arrays that the epilogue reads and writes.
struct RowCursor {
    const kinema_linear_args &args;
    int64_t n, b, s;

    RowCursor(const kinema_linear_args &arguments, int64_t m, int64_t column)
        : args(arguments), n(column), b(m / arguments.tokens), s(m % arguments.tokens) {}
    void next() { // a division per row would be noticeable
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

// Prefetches a tile of the output and of the residual.
inline void prefetch_results(const void *source, int64_t m, int count, int64_t n) {
    RowCursor rows(*static_cast<const kinema_linear_args *>(source), m, n);
    for (int r = 0; r < count; ++r, rows.next()) {
        const float *out = rows.out(), *residual = rows.residual();
        for (int c = 0; c < NR; c += 16) { // a cache line
            __builtin_prefetch(prefetch_address(out, c * 4), 1, 3);
            if (residual != nullptr)
                __builtin_prefetch(prefetch_address(residual, c * 4), 0, 3);
        }
    }
}

// A full tile of an ungated weight: per-column operands are loaded once.
template <class C, bool SCALED, class F>
inline __attribute__((always_inline)) void finish_full_tile(
    RowCursor rows, const C *sums, int count, const int32_t *column_sums, const RowScale *scales, F activation) {
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
            V y = load_sums(sums + half * W, column_sums, half * W, scales[r].zero_point);
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
void finish_full_tile(RowCursor rows, const C *sums, int count, const int32_t *column_sums, const RowScale *scales) {
    switch (rows.args.activation) {
    case KINEMA_GELU:
        return finish_full_tile<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return apply_activation(v, KINEMA_GELU); });
    case KINEMA_GELU_TANH:
        return finish_full_tile<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return apply_activation(v, KINEMA_GELU_TANH); });
    case KINEMA_QUICK_GELU:
        return finish_full_tile<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return apply_activation(v, KINEMA_QUICK_GELU); });
    case KINEMA_SILU:
        return finish_full_tile<C, SCALED>(
            rows, sums, count, column_sums, scales, [](V v) { return apply_activation(v, KINEMA_SILU); });
    default:
        return finish_full_tile<C, SCALED>(rows, sums, count, column_sums, scales, [](V v) { return v; });
    }
}

template <class C>
void finish(
    const void *source, const void *tile, const void *gate_tile, int64_t m, int count, int64_t n, int columns,
    const RowScale *scales) {
    constexpr bool IS_I8 = std::is_same<C, int32_t>::value;
    const kinema_linear_args &args = *static_cast<const kinema_linear_args *>(source);
    const int64_t value_row = gate_tile != nullptr ? args.out_features : 0; // row of scale and bias of the value half
    const C *sums = static_cast<const C *>(tile), *gate_sums = static_cast<const C *>(gate_tile);
    const int32_t *column_sums = nullptr;
    if (IS_I8)
        column_sums = reinterpret_cast<const int32_t *>(
                          static_cast<const char *>(args.weight) +
                          column_sums_at(args.in_features, args.out_features, args.gated)) +
                      (gate_tile != nullptr ? 2 * n + NR : n);
    RowCursor rows(args, m, n);
    if (columns == NR && gate_tile == nullptr) {
        if (IS_I8 || args.x_scale != nullptr || args.weight_scale != nullptr)
            finish_full_tile<C, true>(rows, sums, count, column_sums, scales);
        else
            finish_full_tile<C, false>(rows, sums, count, column_sums, scales);
        return;
    }
    for (int r = 0; r < count; ++r, rows.next()) {
        float *out = rows.out();
        const float *gate = rows.gate(), *residual = rows.residual();
        for (int c = 0; c < columns; c += W) {
            const int lanes = columns - c < W ? columns - c : W;
            const int64_t at = r * NR + c;
            V y = scale_and_bias(args, sums + at, column_sums, c, scales[r], value_row + n + c, lanes);
            if (gate_tile == nullptr)
                y = apply_activation(y, args.activation);
            else
                y =
                    mul(apply_activation(
                            scale_and_bias(args, gate_sums + at, column_sums, c - NR, scales[r], n + c, lanes),
                            args.activation),
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
