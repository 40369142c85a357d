// Attention without materialising the logits: Dao 2023 (FlashAttention-2, arXiv 2307.08691), blocked for the L2 cache.
//
// Heads are processed a few at a time. First their keys and values are packed into panels (rotated if need be, without
// padding slots); then each block of queries passes over them with an online softmax. In int8 (attention_i8.h) queries
// and keys are quantized, and everything after the logits is the same; in bf16 (attention_bf16.h) both products are.
#pragma once

#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// A block of queries and its online softmax: row max m, row sum l, rescale factor alpha = exp(m_old - m_new).
struct QueryBlock {
    const kinema_attention_args &a;
    const AttentionTiling &tiling;
    const ValidKeys valid;
    int64_t b, n, segment, first, count; // rows first to first + count of a segment
    float *packed;                       // keys and values of the head
    float *q, *logits, *acc, *m, *l, *alpha, *q_scale;
    Call &call;
    int thread;

    int64_t tiles() const { return ceil_div(count, MR); }
    int64_t acc_stride() const { return tiling.value_panels * NR; }
    const float *values() const { return packed + tiling.key_floats; }
    int64_t query_at(int64_t r) const {
        return b * a.q_stride_b[segment] + n * a.q_stride_n[segment] + (first + r) * a.q_stride_s[segment];
    }

    // row, codes: scratch of `tiling.width` each
    void begin(float *row, uint8_t *codes) {
        for (int64_t r = 0; r < count; ++r) {
            m[r] = -__builtin_inff();
            l[r] = 0.0f;
        }
        std::memset(acc, 0, tiles() * MR * acc_stride() * sizeof(float));
        if (a.quantize != 0)
            pack_query_codes(row, codes);
        else if (in_bf16(a))
            copy_queries();
        else
            pack_queries();
    }

    void pack_query_codes(float *row, uint8_t *codes) {
        std::memset(row, 0, tiling.width * sizeof(float));
        for (int64_t r = 0; r < count; ++r) {
            const float *x = widened(a, a.q[segment], query_at(r), row);
            if (x != row)
                std::memcpy(row, x, a.head_dim * sizeof(float));
            q_scale[r] = quantize_symmetric(row, a.head_dim, codes) * a.scale;
            pack_row_codes(query_codes(r / I8_ROWS), static_cast<int>(r % I8_ROWS), codes, tiling.code_groups);
        }
    }

    uint8_t *query_codes(int64_t tile) const {
        return reinterpret_cast<uint8_t *>(q) + tile * I8_ROWS * tiling.code_groups * 4;
    }

    // bf16: rows of whole pairs
    int64_t q_stride() const { return ceil_div(a.head_dim, 2) * 2; }

    void copy_queries() {
        for (int64_t r = 0; r < count; ++r) {
            uint16_t *to = halves(q) + r * q_stride();
            to[q_stride() - 1] = 0;
            std::memcpy(to, static_cast<const uint16_t *>(a.q[segment]) + query_at(r), a.head_dim * sizeof(uint16_t));
        }
    }

    void pack_queries() {
        const V scale = set1(a.scale);
        float *scaled = logits; // free for now; head_dim may exceed its size, so a piece at a time
        for (int64_t r = 0; r < count; ++r) {
            const float *x = static_cast<const float *>(a.q[segment]) + query_at(r);
            float *tile = q + r / MR * MR * ceil_div(a.head_dim, KB) * KB;
            for (int64_t d = 0; d < a.head_dim; d += KEY_BLOCK) {
                const int64_t here = min(a.head_dim - d, KEY_BLOCK);
                for (int64_t i = 0; i < here; i += W) {
                    const int lanes = static_cast<int>(min(here - i, W));
                    store_lanes(scaled + i, mul(load_lanes(x + d + i, lanes), scale), lanes);
                }
                pack_row(tile, static_cast<int>(r % MR), d, scaled, here);
            }
        }
    }

    // Row r sees the valid keys below this.
    int64_t causal_limit(int64_t r) const {
        if (a.causal_block == 0)
            return valid.total;
        const int64_t position = first + r + a.causal_offset;
        int64_t block = position / a.causal_block;
        if (position % a.causal_block < 0)
            --block;
        const int64_t last = a.key_segments - 1;
        return valid.first[last] + max(0, min((block + 1) * a.causal_block, valid.count[last]));
    }

    int64_t slot_of(int64_t key) const {
        int64_t s = a.key_segments - 1;
        while (key < valid.first[s])
            --s;
        return valid.slot[s] + key - valid.first[s];
    }

    void add_bias(int64_t r, int64_t key, int64_t from, int64_t to) {
        const int64_t query = first + r + (segment == 1 ? a.q_tokens[0] : 0);
        const float *bias = a.bias + b * a.bias_stride_b + n * a.bias_stride_n + query * a.bias_stride_s;
        float *row = logits + r * KEY_BLOCK;
        for (int64_t j = from; j < to; ++j)
            row[j] += bias[slot_of(key + j) * a.bias_stride_r];
    }

    // Turns the logits of keys `key` + from to `key` + to into weights; keys masked for row r get 0.
    void online_softmax(int64_t r, int64_t key, int64_t from, int64_t to) {
        float *row = logits + r * KEY_BLOCK;
        const int64_t end = max(from, min(to, causal_limit(r) - key));
        if (a.bias != nullptr)
            add_bias(r, key, from, end);
        float m_new = m[r];
        V max0 = set1(m_new), max1 = max0;
        int64_t j = from;
        for (; j + 2 * W <= end; j += 2 * W) {
            max0 = vmax(load(row + j), max0);
            max1 = vmax(load(row + j + W), max1);
        }
        m_new = reduce_max(vmax(max0, max1));
        for (; j < end; ++j)
            m_new = row[j] > m_new ? row[j] : m_new;
        alpha[r] = 1.0f;
        if (m_new == -__builtin_inff()) { // no logit so far, or only NaN
            for (j = from; j < end; ++j)
                l[r] += row[j] != row[j] ? row[j] : 0.0f;
            std::memset(row, 0, KEY_BLOCK * sizeof(float));
            return;
        }
        if (m_new > m[r])
            alpha[r] = m[r] == -__builtin_inff() ? 0.0f : scalar_softmax_exp(m[r] - m_new);
        m[r] = m_new;
        l[r] = l[r] * alpha[r] + weigh(row, from, end, to, m_new);
    }

    // Turns logits `from` to `end` into weights, those up to `to` into 0; returns their sum.
    float weigh(float *row, int64_t from, int64_t end, int64_t to, float m_new) const {
        if (in_bf16(a))
            return weigh_bf16(row, from, end, to, m_new);
        const V row_max = set1(m_new);
        V weight_sum = set1(0.0f);
        int64_t j = from;
        for (; j + W <= end; j += W) {
            const V weight = softmax_exp(sub(load(row + j), row_max));
            store(row + j, weight);
            weight_sum = add(weight_sum, weight);
        }
        if (j < end) {
            const int lanes = static_cast<int>(end - j);
            float tail[W];
            for (int lane = 0; lane < W; ++lane)
                tail[lane] = lane < lanes ? row[j + lane] : -__builtin_inff();
            const V weight = softmax_exp(sub(load(tail), row_max));
            store(tail, weight);
            std::memcpy(row + j, tail, lanes * sizeof(float));
            weight_sum = add(weight_sum, weight);
        }
        std::memset(row + end, 0, (to - end) * sizeof(float));
        return reduce_add(weight_sum);
    }

    static float scalar_softmax_exp(float x) {
        float lanes[W];
        store(lanes, softmax_exp(set1(x)));
        return lanes[0];
    }

    void score_panel(int64_t panel, int columns, float *to) {
        for (int64_t i = 0; i < tiles(); ++i)
            multiply_f32(
                static_cast<int>(min(count - i * MR, MR)), columns, q + i * MR * ceil_div(a.head_dim, KB) * KB,
                Packed{}, packed + panel * NR * a.head_dim, a.head_dim, to + i * MR * KEY_BLOCK, KEY_BLOCK, false);
    }

    void score_panel_bf16(int64_t panel, int columns, float *to) {
        for (int64_t i = 0; i < tiles(); ++i)
            score_bf16(
                static_cast<int>(min(count - i * MR, MR)), columns, halves(q) + i * MR * q_stride(), q_stride(),
                halves(packed) + panel * NR * q_stride(), a.scale, to + i * MR * KEY_BLOCK);
    }

    void score_panel_i8(int64_t panel, float *to) {
        const QuantizedKeys keys(tiling, packed);
        for (int64_t i = 0; i * I8_ROWS < count; ++i)
            score_i8(
                static_cast<int>(min(count - i * I8_ROWS, I8_ROWS)), query_codes(i), q_scale + i * I8_ROWS, keys, panel,
                tiling.code_groups, to + i * I8_ROWS * KEY_BLOCK, KEY_BLOCK);
    }

    // Logits of valid keys `key` + from to `key` + to.
    void score(int64_t key, int64_t from, int64_t to) {
        for (int64_t panel = from / NR; panel * NR < to; ++panel) {
            const int columns = static_cast<int>(min(to - panel * NR, NR));
            float *panel_logits = logits + panel * NR;
            if (a.quantize != 0)
                score_panel_i8(key / NR + panel, panel_logits);
            else if (in_bf16(a))
                score_panel_bf16(key / NR + panel, columns, panel_logits);
            else
                score_panel(key / NR + panel, columns, panel_logits);
        }
    }

    void add_values(int64_t key, int64_t from, int64_t to) {
        for (int64_t panel = 0; panel < tiling.value_panels; ++panel)
            for (int64_t i = 0; i < tiles(); ++i) {
                const int rows = static_cast<int>(min(count - i * MR, MR)),
                          columns = static_cast<int>(min(a.head_dim - panel * NR, NR));
                const int64_t at = (panel * tiling.keys + key) * NR;
                const float *weights = logits + i * MR * KEY_BLOCK;
                float *to_acc = acc + i * MR * acc_stride() + panel * NR;
                if (in_bf16(a)) {
                    add_values_bf16(
                        rows, columns, weights, halves(values()) + at, from, to, to_acc, acc_stride(), alpha + i * MR);
                    continue;
                }
                multiply_f32(
                    rows, columns, weights + from, RowMajor{KEY_BLOCK}, values() + at + from * NR, to - from, to_acc,
                    acc_stride(), true, alpha + i * MR);
            }
    }

    // Attends to valid keys lo to hi.
    void attend(int64_t lo, int64_t hi) {
        if (a.causal_block != 0)
            hi = min(hi, causal_limit(count - 1));
        if (hi <= lo)
            return;
        for (int64_t key = lo / NR * NR; key < hi && !call.interrupted(thread); key += KEY_BLOCK) {
            const int64_t from = max(0, lo - key), to = min(hi - key, KEY_BLOCK);
            score(key, from, to);
            for (int64_t r = 0; r < count; ++r)
                online_softmax(r, key, from, to);
            add_values(key, from, to);
        }
    }

    void attend_listed() {
        const int64_t tile = first / a.query_tile;
        const int64_t at = b * a.list_stride_b + n * a.list_stride_n + tile;
        const int32_t *listed = a.indices + at * a.listed;
        int64_t lo = 0, hi = 0; // adjacent tiles are merged
        for (int32_t i = 0; i < a.counts[at]; ++i) {
            const int64_t from = valid.before(a, listed[i] * a.key_tile);
            const int64_t to = valid.before(a, (listed[i] + 1) * a.key_tile);
            if (from != hi) {
                attend(lo, hi);
                lo = from;
            }
            hi = to;
        }
        attend(lo, hi);
    }

    void finish() {
        for (int64_t r = 0; r < count; ++r) {
            const int64_t s = first + r;
            float *out = a.out[segment] + b * a.out_stride_b[segment] + s * a.out_stride_s[segment] + n * a.head_dim;
            const float *residual = nullptr;
            if (a.residual != nullptr)
                residual = a.residual + b * a.residual_stride_b + s * a.residual_stride_s + n * a.head_dim;
            const V divisor = set1(l[r]);
            for (int64_t d = 0; d < a.head_dim; d += W) {
                const int lanes = static_cast<int>(min(a.head_dim - d, W));
                V y = set1(0.0f);
                if (l[r] > 0.0f)
                    y = div(load(acc + r * acc_stride() + d), divisor);
                else if (l[r] != 0.0f) // NaN must propagate
                    y = divisor;
                if (residual != nullptr)
                    y = add(load_lanes(residual + d, lanes), y);
                store_lanes(out + d, y, lanes);
            }
        }
    }
};

struct AttentionContext {
    const kinema_attention_args &a;
    const AttentionTiling tiling;
    Call &call;
    int64_t head; // the first of the group
    float *packed(int64_t local) const { return static_cast<float *>(a.workspace) + local * tiling.head_floats; }
    double *key_sums(int64_t local) const {
        return reinterpret_cast<double *>(packed(tiling.group) + local * tiling.sum_floats);
    }
    float *scratch(int thread) const {
        return packed(tiling.group) + tiling.group * tiling.sum_floats + thread * tiling.thread_floats;
    }
    float *rows(int thread) const {
        return scratch(thread) + tiling.q_floats + tiling.logit_floats + tiling.out_floats;
    }
    float *row(int thread) const { return rows(thread) + ceil_div(4 * tiling.tiles * MR, 16) * 16; }
    float *mean(int thread) const { return row(thread) + tiling.width; }
    uint8_t *codes(int thread) const { return reinterpret_cast<uint8_t *>(mean(thread) + tiling.width); }
};

inline void key_sum_task(void *data, int64_t task, int thread) {
    const AttentionContext &context = *static_cast<const AttentionContext *>(data);
    const int64_t local = task / context.tiling.chunks, chunk = task % context.tiling.chunks,
                  head = context.head + local;
    const int64_t b = head / context.a.heads;
    sum_keys(
        context.a, ValidKeys(context.a, b), b, head % context.a.heads, chunk * PACK_BLOCK, (chunk + 1) * PACK_BLOCK,
        context.row(thread), context.key_sums(local) + chunk * context.a.head_dim);
}

// With a single chunk per head its key sums are computed by the task that packs it: no barrier in between.
inline bool sums_within_task(const AttentionContext &context) {
    return context.a.quantize != 0 && context.tiling.chunks == 1;
}

inline void pack_task(void *data, int64_t task, int thread) {
    const AttentionContext &context = *static_cast<const AttentionContext *>(data);
    const kinema_attention_args &a = context.a;
    const AttentionTiling &tiling = context.tiling;
    const int64_t local = task / tiling.chunks, chunk = task % tiling.chunks, head = context.head + local,
                  b = head / a.heads;
    const ValidKeys valid(a, b);
    float *packed = context.packed(local), *row = context.row(thread), *mean = context.mean(thread);
    if (sums_within_task(context))
        key_sum_task(data, task, thread);
    if (a.quantize != 0) {
        mean_key(context.key_sums(local), tiling.chunks, valid.total, a.head_dim, mean);
        std::memset(row, 0, tiling.width * sizeof(float));
    }
    // the padding of the last panels stays uninitialised: no result computed from it is read
    for (int64_t j = chunk * PACK_BLOCK; j < min((chunk + 1) * PACK_BLOCK, valid.total); ++j) {
        const float *k = read_key(a, valid, b, head % a.heads, j, row);
        if (a.quantize != 0)
            pack_key_i8(k, mean, a.head_dim, tiling, j, row, context.codes(thread), packed);
        else if (in_bf16(a))
            pack_key_bf16(k, a.head_dim, j, halves(mean), halves(packed));
        else
            pack_key(k, a.head_dim, j, packed);
        const float *v = read_value(a, valid, b, head % a.heads, j);
        if (!in_bf16(a))
            pack_value(v, a.head_dim, tiling, j, packed);
        else if (j % 2 == 0)
            pack_values_bf16(
                v, read_value(a, valid, b, head % a.heads, min(j + 1, valid.total - 1)), a.head_dim, tiling, j,
                halves(packed + tiling.key_floats));
    }
}

inline void query_task(void *data, int64_t task, int thread) {
    const AttentionContext &context = *static_cast<const AttentionContext *>(data);
    const AttentionTiling &tiling = context.tiling;
    const int64_t blocks = tiling.blocks[0] + tiling.blocks[1], local = task / blocks, head = context.head + local;
    int64_t block = task % blocks;
    const int64_t segment = block < tiling.blocks[0] ? 0 : 1;
    block -= segment == 1 ? tiling.blocks[0] : 0;
    const int64_t tile = block / tiling.tile_blocks[segment], part = block % tiling.tile_blocks[segment];
    const int64_t first = tile * tiling.tile_rows[segment] + part * tiling.query_block;
    const int64_t end = min((tile + 1) * tiling.tile_rows[segment], context.a.q_tokens[segment]);
    if (first >= end)
        return;
    float *scratch = context.scratch(thread), *rows = context.rows(thread);
    const int64_t b = head / context.a.heads;
    QueryBlock query{
        context.a,
        tiling,
        ValidKeys(context.a, b),
        b,
        head % context.a.heads,
        segment,
        first,
        min(end - first, tiling.query_block),
        context.packed(local),
        scratch,
        scratch + tiling.q_floats,
        scratch + tiling.q_floats + tiling.logit_floats,
        rows,
        rows + tiling.tiles * MR,
        rows + 2 * tiling.tiles * MR,
        rows + 3 * tiling.tiles * MR,
        context.call,
        thread};
    query.begin(context.row(thread), context.codes(thread));
    if (context.a.counts != nullptr)
        query.attend_listed();
    else
        query.attend(0, query.valid.total);
    query.finish();
}

inline int64_t attention_workspace(const kinema_attention_args &a) {
    return AttentionTiling(a).bytes(a.threads > 1 ? a.threads : 1);
}

inline void attention(const kinema_attention_args &a, Call &call) {
    AttentionContext context{a, AttentionTiling(a), call, 0};
    const int threads = a.threads > 1 ? a.threads : 1;
    for (context.head = 0; context.head < a.batch * a.heads; context.head += context.tiling.group) {
        const int64_t here = min(context.tiling.group, a.batch * a.heads - context.head);
        if (a.quantize != 0 && !sums_within_task(context))
            call.run(threads, here * context.tiling.chunks, key_sum_task, &context);
        call.run(threads, here * context.tiling.chunks, pack_task, &context);
        call.run(threads, here * (context.tiling.blocks[0] + context.tiling.blocks[1]), query_task, &context);
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
