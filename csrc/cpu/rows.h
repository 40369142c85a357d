// Row-wise ops: a row of channels is read from memory once and stays in L1.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t TASK_VALUES = 16384; // what a thread takes at once: enough to outweigh the scheduling

// f(index, thread) for every row, many rows per task.
template <class F> void parallel_for_rows(Call &call, int32_t threads, int64_t rows, int64_t width, const F &f) {
    struct Work {
        const F &f;
        int64_t rows, block;
    } work{f, rows, max(1, TASK_VALUES / max(width, 1))};
    call.run(
        threads > 1 ? threads : 1, ceil_div(rows, work.block),
        [](void *data, int64_t task, int thread) {
            const Work &w = *static_cast<const Work *>(data);
            const int64_t end = min(w.rows, (task + 1) * w.block);
            for (int64_t row = task * w.block; row < end; ++row)
                w.f(row, thread);
        },
        &work);
}

inline V load_lanes(const float *p, int lanes) { return lanes == W ? load(p) : load_n(p, lanes); }
inline void store_lanes(float *p, V v, int lanes) {
    if (lanes == W)
        store(p, v);
    else
        store_n(p, v, lanes);
}

// Σ f(vector of x) over a row, per lane, in four independent accumulators; lanes beyond the end are f(padding).
template <class F> inline V lane_sums(const float *x, int64_t count, float padding, F f) {
    V sums[4] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W)
        for (int s = 0; s < 4; ++s)
            sums[s] = add(sums[s], f(load(x + i + s * W)));
    for (; i + W <= count; i += W)
        sums[0] = add(sums[0], f(load(x + i)));
    if (i < count) {
        float tail[W];
        for (int lane = 0; lane < W; ++lane)
            tail[lane] = i + lane < count ? x[i + lane] : padding;
        sums[1] = add(sums[1], f(load(tail)));
    }
    return add(add(sums[0], sums[1]), add(sums[2], sums[3]));
}

template <class F> inline float row_sum(const float *x, int64_t count, float padding, F f) {
    return reduce_add(lane_sums(x, count, padding, f));
}

// ---- bf16

// to nearest even; NaN stays NaN
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<uint16_t>(x == x ? rounded : bits >> 16 | 0x40u);
}

inline void round_row(const float *x, int64_t count, uint16_t *to) {
    int64_t i = 0;
#if defined(__AVX512BF16__)
    for (; i + W <= count; i += W)
        store_bf16(to + i, load(x + i));
#endif
    for (; i < count; ++i)
        to[i] = to_bf16(x[i]);
}

inline void widen_row(const uint16_t *x, int64_t count, float *to) {
    int64_t i = 0;
    for (; i + W <= count; i += W)
        store(to + i, load_bf16(x + i));
    uint16_t tail[W] = {};
    for (int lane = 0; i + lane < count; ++lane)
        tail[lane] = x[i + lane];
    if (i < count)
        store_n(to + i, load_bf16(tail), static_cast<int>(count - i));
}

struct Moments {
    float mean, rstd; // norm(x) = (x − mean)·rstd
};

// noinline, as is modulate(), so that all callers share one copy: a compiler may fuse a multiplication and an addition
// in one copy and not in another.
inline __attribute__((noinline)) Moments moments(const float *x, int64_t count, int32_t norm, float eps) {
    if (norm == KINEMA_NO_NORM)
        return {0.0f, 1.0f};
    float mean = 0.0f;
    if (norm == KINEMA_LAYER_NORM)
        mean = row_sum(x, count, 0.0f, [](V v) { return v; }) / static_cast<float>(count);
    // of x − mean: E[x²] − mean² cancels where the mean is large
    const V center = set1(mean);
    const float squares = row_sum(x, count, mean, [=](V v) {
        const V d = sub(v, center);
        return mul(d, d);
    });
    return {mean, 1.0f / std::sqrt(squares / static_cast<float>(count) + eps)};
}

// to = (x − mean)·rstd·weight + bias; weight and bias may be null
inline void
apply_norm(const Moments &stats, const float *x, const float *weight, const float *bias, int64_t count, float *to) {
    const V mean = set1(stats.mean), rstd = set1(stats.rstd);
    for (int64_t i = 0; i < count; i += W) {
        const int lanes = static_cast<int>(min(count - i, W));
        V y = mul(sub(load_lanes(x + i, lanes), mean), rstd);
        if (weight != nullptr)
            y = mul(y, load_lanes(weight + i, lanes));
        if (bias != nullptr)
            y = add(y, load_lanes(bias + i, lanes));
        store_lanes(to + i, y, lanes);
    }
}

// ---- 8 bits

// fp32 → e4m3 to nearest even, saturating; branchless, so that compilers vectorise it
inline uint8_t to_e4m3(float x) {
    uint32_t bits, whole;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 24 & 0x80u, magnitude_bits = bits & 0x7fffffffu;
    float magnitude;
    std::memcpy(&magnitude, &magnitude_bits, sizeof magnitude);
    const float clamped = magnitude < 448.0f ? magnitude : 448.0f;
    std::memcpy(&whole, &clamped, sizeof whole);
    // exponent and three bits of mantissa, rebiased from fp32 to e4m3; below 2^-6 multiples of 2^-9
    const uint32_t normal = ((whole + 0x7ffffu + (whole >> 20 & 1u)) >> 20) - (120u << 3);
    const uint32_t small = static_cast<uint32_t>(static_cast<int32_t>(std::nearbyintf(clamped * 512.0f)));
    const uint32_t code = clamped < 0.015625f ? small : normal;
    return static_cast<uint8_t>((magnitude_bits > 0x7f800000u ? 0x7fu : code) | sign);
}

inline float absmax(const float *x, int64_t count) {
    V magnitude = set1(0.0f);
    int64_t i = 0;
    for (; i + W <= count; i += W)
        magnitude = vmax(vabs(load(x + i)), magnitude);
    if (i < count)
        magnitude = vmax(vabs(load_n(x + i, static_cast<int>(count - i))), magnitude);
    return reduce_max(magnitude);
}

// to[i] = x[i] / scale, rounded to nearest even
inline void quantize_i8(const float *x, float scale, int64_t count, int8_t *to) {
    const V divisor = set1(scale), upper = set1(127.0f), lower = set1(-127.0f);
    float rounded[64];
    for (int64_t i = 0; i < count; i += 64) {
        const int64_t here = min(count - i, 64);
        for (int64_t j = 0; j < here; j += W) {
            const int lanes = static_cast<int>(min(here - j, W));
            const V given = lanes == W ? load(x + i + j) : load_n(x + i + j, lanes);
            store(rounded + j, vround(vmin(upper, vmax(lower, div(given, divisor)))));
        }
        for (int64_t j = 0; j < here; ++j)
            to[i + j] = static_cast<int8_t>(static_cast<int32_t>(rounded[j]));
    }
}

// to = x / scale in 8 bits with scale = max(max|x|, 1e-12) / code_max, which is returned
inline float quantize_row(const float *x, int64_t count, int32_t dtype, void *to) {
    const float magnitude = absmax(x, count);
    const float upper = dtype == KINEMA_I8 ? 127.0f : 448.0f, scale = (magnitude > 1e-12f ? magnitude : 1e-12f) / upper;
    if (dtype == KINEMA_I8) {
        quantize_i8(x, scale, count, static_cast<int8_t *>(to));
        return scale;
    }
    uint8_t *codes = static_cast<uint8_t *>(to);
    for (int64_t i = 0; i < count; ++i)
        codes[i] = to_e4m3(x[i] / scale);
    return scale;
}

// ---- norm_modulate

// Pointers to the operands for channels from k on of token s of sample b; absent ones are null.
struct NormRow {
    const float *weight = nullptr, *bias = nullptr, *scale = nullptr, *shift = nullptr;

    NormRow(const kinema_norm &norm, int64_t b, int64_t s, int64_t k) {
        if (norm.weight != nullptr)
            weight = norm.weight + k;
        if (norm.bias != nullptr)
            bias = norm.bias + k;
        if (norm.scale != nullptr)
            scale = norm.scale + b * norm.scale_stride_b + s / norm.scale_tokens * norm.scale_stride_g + k;
        if (norm.shift != nullptr)
            shift = norm.shift + b * norm.shift_stride_b + s / norm.shift_tokens * norm.shift_stride_g + k;
    }
};

// weight and bias alone, scale and shift alone, or whichever are not null
enum class NormTerms { AFFINE, MODULATED, ANY };

// Writes `count` channels of y.
template <NormTerms TERMS>
inline void modulate(const NormRow &row, const Moments &stats, int64_t count, const float *x, float *to) {
    constexpr bool AFFINE = TERMS == NormTerms::AFFINE, MODULATED = TERMS == NormTerms::MODULATED,
                   ANY = TERMS == NormTerms::ANY;
    const V mean = set1(stats.mean), rstd = set1(stats.rstd), one = set1(1.0f);
    const auto value = [&](int64_t i, int lanes) __attribute__((always_inline)) {
        V y = mul(sub(load_lanes(x + i, lanes), mean), rstd);
        if (AFFINE || (ANY && row.weight != nullptr))
            y = mul(y, load_lanes(row.weight + i, lanes));
        if (AFFINE || (ANY && row.bias != nullptr))
            y = add(y, load_lanes(row.bias + i, lanes));
        if (MODULATED || (ANY && row.scale != nullptr))
            y = mul(y, add(one, load_lanes(row.scale + i, lanes)));
        if (MODULATED || (ANY && row.shift != nullptr))
            y = add(y, load_lanes(row.shift + i, lanes));
        return y;
    };
    int64_t i = 0;
    for (; i + W <= count; i += W)
        store(to + i, value(i, W));
    if (i < count)
        store_n(to + i, value(i, static_cast<int>(count - i)), static_cast<int>(count - i));
}

// Writes channels k to k + count of y for token s of sample b; x: the first of them.
inline __attribute__((noinline)) void modulate(
    const kinema_norm &norm, const Moments &stats, int64_t b, int64_t s, int64_t k, int64_t count, const float *x,
    float *to) {
    const NormRow row(norm, b, s, k);
    const bool affine = row.weight != nullptr || row.bias != nullptr;
    const bool modulated = row.scale != nullptr || row.shift != nullptr;
    if (!affine && row.scale != nullptr && row.shift != nullptr)
        modulate<NormTerms::MODULATED>(row, stats, count, x, to);
    else if (!modulated && row.weight != nullptr && row.bias != nullptr)
        modulate<NormTerms::AFFINE>(row, stats, count, x, to);
    else
        modulate<NormTerms::ANY>(row, stats, count, x, to);
}

inline void norm_modulate_row(const kinema_norm_modulate_args &a, int64_t row, float *to) {
    const int64_t b = row / a.tokens, s = row % a.tokens;
    const float *x = a.x + b * a.x_stride_b + s * a.x_stride_s;
    modulate(a.norm, moments(x, a.channels, a.norm.kind, a.norm.eps), b, s, 0, a.channels, x, to);
}

inline bool only_quantizes(const kinema_norm &norm) {
    return norm.kind == KINEMA_NO_NORM && norm.weight == nullptr && norm.bias == nullptr && norm.scale == nullptr &&
           norm.shift == nullptr;
}

inline int64_t norm_modulate_workspace(const kinema_norm_modulate_args &a) {
    return a.out_dtype == KINEMA_F32 ? 0 : 4 * max(1, a.threads) * a.channels; // a row of fp32 per thread
}

inline void norm_modulate(const kinema_norm_modulate_args &a, Call &call) {
    parallel_for_rows(call, a.threads, a.batch * a.tokens, a.channels, [&](int64_t row, int thread) {
        if (a.out_dtype == KINEMA_F32) {
            float *out =
                static_cast<float *>(a.out) + row / a.tokens * a.out_stride_b + row % a.tokens * a.out_stride_s;
            norm_modulate_row(a, row, out);
            return;
        }
        const float *from = a.x + row / a.tokens * a.x_stride_b + row % a.tokens * a.x_stride_s;
        if (!only_quantizes(a.norm)) {
            float *normed = static_cast<float *>(a.workspace) + thread * a.channels;
            norm_modulate_row(a, row, normed);
            from = normed;
        }
        a.out_scale[row] = quantize_row(from, a.channels, a.out_dtype, static_cast<char *>(a.out) + row * a.channels);
    });
}

// ---- qk_norm_rope

// Rotates pairs of x [head_dim] in place.
inline void rotate(float *x, const float *cosines, const float *sines, int64_t pairs, bool interleaved) {
    if (interleaved)
        for (int64_t j = 0; j < pairs; ++j) {
            const float a = x[2 * j], b = x[2 * j + 1];
            x[2 * j] = a * cosines[j] - b * sines[j];
            x[2 * j + 1] = a * sines[j] + b * cosines[j];
        }
    else
        for (int64_t j = 0; j < pairs; ++j) {
            const float a = x[j], b = x[j + pairs];
            x[j] = a * cosines[j] - b * sines[j];
            x[j + pairs] = a * sines[j] + b * cosines[j];
        }
}

inline int64_t qk_norm_rope_workspace(const kinema_qk_norm_rope_args &a) {
    return a.out_dtype == KINEMA_F32 ? 0 : 4 * max(1, a.threads) * a.head_dim; // a head of fp32 per thread
}

inline void qk_norm_rope(const kinema_qk_norm_rope_args &a, Call &call) {
    const int64_t channels = a.heads * a.head_dim, of_operand = a.heads / a.operands;
    const bool rounds = a.out_dtype != KINEMA_F32;
    parallel_for_rows(call, a.threads, a.batch * a.tokens, channels, [&](int64_t row, int thread) {
        const int64_t b = row / a.tokens, s = row % a.tokens;
        const float *x = a.x + b * a.x_stride_b + s * a.x_stride_s;
        Moments stats{0.0f, 1.0f};
        const int64_t position = a.cosines != nullptr ? s - a.rope_start : -1;
        const bool rotates = position >= 0 && position < a.rope_tokens;
        const int64_t table = rotates ? b * a.rope_stride_b + position * (a.head_dim / 2) : 0;
        for (int64_t head = 0; head < a.heads; ++head) {
            const float *from = x + head * a.head_dim;
            const int64_t result = b * a.out_stride_b + head * a.out_stride_n + s * a.head_dim;
            float *to =
                rounds ? static_cast<float *>(a.workspace) + thread * a.head_dim : static_cast<float *>(a.out) + result;
            if (!a.across_heads)
                stats = moments(from, a.head_dim, a.norm, a.eps);
            else if (head % of_operand == 0)
                stats = moments(from, of_operand * a.head_dim, a.norm, a.eps);
            const int64_t at = (a.across_heads ? head : head / of_operand) * a.head_dim;
            apply_norm(
                stats, from, a.weight != nullptr ? a.weight + at : nullptr, a.bias != nullptr ? a.bias + at : nullptr,
                a.head_dim, to);
            if (rotates)
                rotate(to, a.cosines + table, a.sines + table, a.head_dim / 2, a.interleaved != 0);
            if (rounds)
                round_row(to, a.head_dim, static_cast<uint16_t *>(a.out) + result);
        }
    });
}

// ---- scheduler_step

constexpr int64_t STREAMED_BYTES = 8ll << 20; // results too large to stay in a cache until they are read
// Terms are read in turn, a piece of each, and the pieces are too short for hardware prefetching. So adjacent blocks go
// to one thread, which prefetches two blocks ahead. Blocks of 4 KB would be 1.1 to 1.2 times as slow: then those of all
// terms, and the prefetched ones, map to the same cache sets.
constexpr int64_t STEP_BLOCKS = 256;
constexpr int64_t STEP_ELEMENTS = 256; // of a block
constexpr int64_t STEP_PREFETCH = 2 * STEP_ELEMENTS;

// COUNT vectors of one output's weighted sum of the terms, from element `first` of sample b on.
template <int COUNT>
inline void weighted_sum(const kinema_scheduler_step_args &a, const float *c, int64_t b, int64_t first, float *to) {
    V sums[COUNT];
    for (V &sum : sums)
        sum = set1(0.0f);
    for (int64_t k = 0; k < a.term_count; ++k) {
        if (c[k] == 0.0f)
            continue;
        const float *term = a.terms[k] + b * a.term_strides[k] + first;
        const V factor = set1(c[k]);
#pragma GCC unroll 8
        for (int v = 0; v < COUNT; ++v) {
            __builtin_prefetch(prefetch_address(term, (STEP_PREFETCH + v * W) * 4), 0, 3);
            sums[v] = fma(factor, load(term + v * W), sums[v]);
        }
    }
    for (int v = 0; v < COUNT; ++v)
        store(to + v * W, sums[v]);
}

// The tail of a block, shorter than a vector.
inline void
weighted_sum_tail(const kinema_scheduler_step_args &a, const float *c, int64_t b, int64_t first, int lanes, float *to) {
    V sum = set1(0.0f);
    for (int64_t k = 0; k < a.term_count; ++k)
        if (c[k] != 0.0f)
            sum = fma(set1(c[k]), load_n(a.terms[k] + b * a.term_strides[k] + first, lanes), sum);
    store(to, sum);
}

inline void write_result(float *to, const float *from, int64_t count, bool non_temporal) {
    if (!non_temporal || reinterpret_cast<uintptr_t>(to) % sizeof(V) != 0) {
        std::memcpy(to, from, count * sizeof(float));
        return;
    }
    int64_t i = 0;
    for (; i + W <= count; i += W)
        stream(to + i, load(from + i));
    std::memcpy(to + i, from + i, (count - i) * sizeof(float));
}

// Block `row` of all samples' blocks. All outputs are computed before any is written: an output may also be a term.
inline void
step_block(const kinema_scheduler_step_args &a, int64_t blocks, int64_t row, float *sums, bool non_temporal) {
    constexpr int64_t BLOCK = STEP_ELEMENTS;
    constexpr int UNROLL = W == 16 ? 4 : 8; // four cache lines on AVX-512 and AVX2
    const int64_t b = row / blocks, first = row % blocks * BLOCK, count = min(a.elements - first, BLOCK);
    const float *c = a.coefficients + b * a.out_count * a.term_count;
    for (int64_t i = 0; i < count;) {
        const int64_t left = count - i, step = left >= UNROLL * W ? UNROLL * W : min(left, W);
        for (int64_t m = 0; m < a.out_count; ++m) {
            float *to = sums + m * BLOCK + i;
            if (step == UNROLL * W)
                weighted_sum<UNROLL>(a, c + m * a.term_count, b, first + i, to);
            else if (step == W)
                weighted_sum<1>(a, c + m * a.term_count, b, first + i, to);
            else
                weighted_sum_tail(a, c + m * a.term_count, b, first + i, static_cast<int>(step), to);
        }
        i += step;
    }
    for (int64_t m = 0; m < a.out_count; ++m)
        write_result(a.outs[m] + b * a.out_strides[m] + first, sums + m * BLOCK, count, non_temporal);
}

inline int64_t scheduler_step_workspace(const kinema_scheduler_step_args &a) {
    return 4 * max(1, a.threads) * a.out_count * STEP_ELEMENTS;
}

inline void scheduler_step(const kinema_scheduler_step_args &a, Call &call) {
    constexpr int64_t BLOCK = STEP_ELEMENTS;
    const int64_t blocks = ceil_div(a.elements, BLOCK), rows = a.batch * blocks, threads = max(1, a.threads);
    const int64_t enough = TASK_VALUES / (BLOCK * max(1, a.term_count));
    const int64_t blocks_per_task = max(1, max(enough, min(STEP_BLOCKS, rows / (4 * threads))));
    const bool non_temporal = a.batch * a.elements * a.out_count * 4 > STREAMED_BYTES;
    parallel_for_rows(call, a.threads, ceil_div(rows, blocks_per_task), TASK_VALUES, [&](int64_t task, int thread) {
        float *sums = static_cast<float *>(a.workspace) + thread * a.out_count * BLOCK;
        for (int64_t row = task * blocks_per_task; row < min(rows, (task + 1) * blocks_per_task); ++row)
            step_block(a, blocks, row, sums, non_temporal);
        if (non_temporal)
            stream_fence(); // waits for the streaming stores: once for many blocks
    });
}

} // namespace KINEMA_ISA
} // namespace kinema
