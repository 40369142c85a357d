// Attention without a matrix of logits: Dao 2023 (FlashAttention-2, arXiv 2307.08691), blocked for the second-level
// cache.
//
// Heads are taken a few at a time. First their keys and values are packed into panels (rotated, if need be, and without
// the slots that are not real); then every block of queries goes over them with a running maximum and sum. In 8 bits
// (attention_i8.h) queries and keys are codes, and all behind the logits is the same.
#pragma once

#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// A block of queries on its way over the keys of a head.
struct QueryBlock {
    const kinema_attention_args &a;
    const AttentionCut &cut;
    const RealKeys real;
    int64_t b, n, segment, first, count; // rows first to first + count of a segment
    float *packed;                       // the head
    float *q, *logits, *sums, *top, *total, *fade, *factor;
    Call &call;
    int thread;

    int64_t tiles() const { return ceil_div(count, MR); }
    int64_t padded() const { return cut.value_panels * NR; }
    const float *values() const { return packed + cut.key_floats; }

    // row, codes: scratch of `cut.width` each
    void begin(float *row, uint8_t *codes) {
        for (int64_t r = 0; r < count; ++r) {
            top[r] = -__builtin_inff();
            total[r] = 0.0f;
        }
        std::memset(sums, 0, tiles() * MR * padded() * sizeof(float));
        if (a.quantize != 0)
            place_query_codes(row, codes);
        else
            place_queries();
    }

    void place_query_codes(float *row, uint8_t *codes) {
        const float *from = a.q[segment] + b * a.q_stride_b[segment] + n * a.q_stride_n[segment];
        std::memset(row, 0, cut.width * sizeof(float));
        for (int64_t r = 0; r < count; ++r) {
            std::memcpy(row, from + (first + r) * a.q_stride_s[segment], a.head_dim * sizeof(float));
            factor[r] = to_even_codes(row, a.head_dim, codes) * a.scale;
            place_codes(query_codes(r / I8_ROWS), static_cast<int>(r % I8_ROWS), codes, cut.code_groups);
        }
    }

    uint8_t *query_codes(int64_t tile) const {
        return reinterpret_cast<uint8_t *>(q) + tile * I8_ROWS * cut.code_groups * 4;
    }

    void place_queries() {
        const float *from = a.q[segment] + b * a.q_stride_b[segment] + n * a.q_stride_n[segment];
        const V scale = set1(a.scale);
        float *scaled = logits; // not in use yet; head_dim may be larger than it, so a piece at a time
        for (int64_t r = 0; r < count; ++r) {
            const float *x = from + (first + r) * a.q_stride_s[segment];
            float *tile = q + r / MR * MR * ceil_div(a.head_dim, KB) * KB;
            for (int64_t d = 0; d < a.head_dim; d += KEY_BLOCK) {
                const int64_t here = least(a.head_dim - d, KEY_BLOCK);
                for (int64_t i = 0; i < here; i += W) {
                    const int lanes = static_cast<int>(least(here - i, W));
                    store_some(scaled + i, mul(load_some(x + d + i, lanes), scale), lanes);
                }
                place(tile, static_cast<int>(r % MR), d, scaled, here);
            }
        }
    }

    // Real keys that row r sees are those below this.
    int64_t limit(int64_t r) const {
        if (a.causal_block == 0)
            return real.total;
        const int64_t position = first + r + a.causal_offset;
        int64_t block = position / a.causal_block;
        if (position % a.causal_block < 0)
            --block;
        const int64_t last = a.key_segments - 1;
        return real.first[last] + most(0, least((block + 1) * a.causal_block, real.count[last]));
    }

    int64_t slot_of(int64_t key) const {
        int64_t s = a.key_segments - 1;
        while (key < real.first[s])
            --s;
        return real.slot[s] + key - real.first[s];
    }

    void add_bias(int64_t r, int64_t key, int64_t from, int64_t to) {
        const int64_t query = first + r + (segment == 1 ? a.q_tokens[0] : 0);
        const float *bias = a.bias + b * a.bias_stride_b + n * a.bias_stride_n + query * a.bias_stride_s;
        float *row = logits + r * KEY_BLOCK;
        for (int64_t j = from; j < to; ++j)
            row[j] += bias[slot_of(key + j) * a.bias_stride_r];
    }

    // Logits of keys `key` + from to `key` + to become weights; what row r does not see weighs nothing.
    void weigh(int64_t r, int64_t key, int64_t from, int64_t to) {
        float *row = logits + r * KEY_BLOCK;
        const int64_t end = most(from, least(to, limit(r) - key));
        if (a.bias != nullptr)
            add_bias(r, key, from, end);
        float high = top[r];
        V highest = set1(high), others = highest;
        int64_t j = from;
        for (; j + 2 * W <= end; j += 2 * W) {
            highest = vmax(load(row + j), highest);
            others = vmax(load(row + j + W), others);
        }
        high = max(vmax(highest, others));
        for (; j < end; ++j)
            high = row[j] > high ? row[j] : high;
        fade[r] = 1.0f;
        if (high == -__builtin_inff()) { // nothing was seen so far, or what is not a number
            for (j = from; j < end; ++j)
                total[r] += row[j] != row[j] ? row[j] : 0.0f;
            std::memset(row + from, 0, (to - from) * sizeof(float));
            return;
        }
        if (high > top[r])
            fade[r] = top[r] == -__builtin_inff() ? 0.0f : exp_of(top[r] - high);
        top[r] = high;
        const V base = set1(high);
        V added = set1(0.0f);
        for (j = from; j + W <= end; j += W) {
            const V weight = weight_of(sub(load(row + j), base));
            store(row + j, weight);
            added = add(added, weight);
        }
        if (j < end) {
            const int lanes = static_cast<int>(end - j);
            float rest[W];
            for (int lane = 0; lane < W; ++lane)
                rest[lane] = lane < lanes ? row[j + lane] : -__builtin_inff();
            const V weight = weight_of(sub(load(rest), base));
            store(rest, weight);
            std::memcpy(row + j, rest, lanes * sizeof(float));
            added = add(added, weight);
        }
        std::memset(row + end, 0, (to - end) * sizeof(float));
        total[r] = total[r] * fade[r] + sum(added);
    }

    static float exp_of(float x) {
        float lanes[W];
        store(lanes, weight_of(set1(x)));
        return lanes[0];
    }

    void score_panel(int64_t panel, int columns, float *to) {
        for (int64_t i = 0; i < tiles(); ++i)
            multiply_f32(
                static_cast<int>(least(count - i * MR, MR)), columns, q + i * MR * ceil_div(a.head_dim, KB) * KB,
                Packed{}, packed + panel * NR * a.head_dim, a.head_dim, to + i * MR * KEY_BLOCK, KEY_BLOCK, false);
    }

    void score_panel_codes(int64_t panel, float *to) {
        const KeyCodes keys(cut, packed);
        for (int64_t i = 0; i * I8_ROWS < count; ++i)
            score_codes(
                static_cast<int>(least(count - i * I8_ROWS, I8_ROWS)), query_codes(i), factor + i * I8_ROWS, keys,
                panel, cut.code_groups, to + i * I8_ROWS * KEY_BLOCK, KEY_BLOCK);
    }

    // Real keys from lo up to hi.
    void visit(int64_t lo, int64_t hi) {
        if (a.causal_block != 0)
            hi = least(hi, limit(count - 1));
        if (hi <= lo)
            return;
        for (int64_t key = lo / NR * NR; key < hi && !call.interrupted(thread); key += KEY_BLOCK) {
            const int64_t from = most(0, lo - key), to = least(hi - key, KEY_BLOCK);
            for (int64_t panel = from / NR; panel * NR < to; ++panel)
                if (a.quantize != 0)
                    score_panel_codes(key / NR + panel, logits + panel * NR);
                else
                    score_panel(key / NR + panel, static_cast<int>(least(to - panel * NR, NR)), logits + panel * NR);
            for (int64_t r = 0; r < count; ++r)
                weigh(r, key, from, to);
            for (int64_t panel = 0; panel < cut.value_panels; ++panel)
                for (int64_t i = 0; i < tiles(); ++i)
                    multiply_f32(
                        static_cast<int>(least(count - i * MR, MR)),
                        static_cast<int>(least(a.head_dim - panel * NR, NR)), logits + i * MR * KEY_BLOCK + from,
                        Rowwise{KEY_BLOCK}, values() + (panel * cut.keys + key + from) * NR, to - from,
                        sums + i * MR * padded() + panel * NR, padded(), true, fade + i * MR);
        }
    }

    void visit_listed() {
        const int64_t tile = first / a.query_tile;
        const int64_t at = b * a.list_stride_b + n * a.list_stride_n + tile;
        const int32_t *listed = a.indices + at * a.listed;
        int64_t lo = 0, hi = 0; // neighbours are taken together
        for (int32_t i = 0; i < a.counts[at]; ++i) {
            const int64_t from = real.before(a, listed[i] * a.key_tile);
            const int64_t to = real.before(a, (listed[i] + 1) * a.key_tile);
            if (from != hi) {
                visit(lo, hi);
                lo = from;
            }
            hi = to;
        }
        visit(lo, hi);
    }

    void finish() {
        for (int64_t r = 0; r < count; ++r) {
            const int64_t s = first + r;
            float *out = a.out[segment] + b * a.out_stride_b[segment] + s * a.out_stride_s[segment] + n * a.head_dim;
            const float *residual = nullptr;
            if (a.residual != nullptr)
                residual = a.residual + b * a.residual_stride_b + s * a.residual_stride_s + n * a.head_dim;
            const V divisor = set1(total[r]);
            for (int64_t d = 0; d < a.head_dim; d += W) {
                const int lanes = static_cast<int>(least(a.head_dim - d, W));
                V y = set1(0.0f);
                if (total[r] > 0.0f)
                    y = div(load(sums + r * padded() + d), divisor);
                else if (total[r] != 0.0f) // NaN, which may not be lost
                    y = divisor;
                if (residual != nullptr)
                    y = add(load_some(residual + d, lanes), y);
                store_some(out + d, y, lanes);
            }
        }
    }
};

struct RunningAttention {
    const kinema_attention_args &a;
    const AttentionCut cut;
    Call &call;
    int64_t head; // the first of the group
    float *packed(int64_t local) const { return static_cast<float *>(a.workspace) + local * cut.head_floats; }
    double *key_sums(int64_t local) const {
        return reinterpret_cast<double *>(packed(cut.group) + local * cut.sum_floats);
    }
    float *scratch(int thread) const {
        return packed(cut.group) + cut.group * cut.sum_floats + thread * cut.thread_floats;
    }
    float *rows(int thread) const { return scratch(thread) + cut.q_floats + cut.logit_floats + cut.out_floats; }
    float *row(int thread) const { return rows(thread) + ceil_div(4 * cut.tiles * MR, 16) * 16; }
    float *mean(int thread) const { return row(thread) + cut.width; }
    uint8_t *codes(int thread) const { return reinterpret_cast<uint8_t *>(mean(thread) + cut.width); }
};

inline void sum_task(void *data, int64_t task, int thread) {
    const RunningAttention &run = *static_cast<const RunningAttention *>(data);
    const int64_t local = task / run.cut.chunks, chunk = task % run.cut.chunks, head = run.head + local;
    const int64_t b = head / run.a.heads;
    sum_keys(
        run.a, RealKeys(run.a, b), b, head % run.a.heads, chunk * PACK_BLOCK, (chunk + 1) * PACK_BLOCK, run.row(thread),
        run.key_sums(local) + chunk * run.a.head_dim);
}

// A mean of keys that are packed at once is of no other task's sums: they need no wait for one another.
inline bool sums_alone(const RunningAttention &run) { return run.a.quantize != 0 && run.cut.chunks == 1; }

inline void pack_task(void *data, int64_t task, int thread) {
    const RunningAttention &run = *static_cast<const RunningAttention *>(data);
    const kinema_attention_args &a = run.a;
    const AttentionCut &cut = run.cut;
    const int64_t local = task / cut.chunks, chunk = task % cut.chunks, head = run.head + local, b = head / a.heads;
    const RealKeys real(a, b);
    float *packed = run.packed(local), *row = run.row(thread), *mean = run.mean(thread);
    if (sums_alone(run))
        sum_task(data, task, thread);
    if (a.quantize != 0) {
        mean_of_keys(run.key_sums(local), cut.chunks, real.total, a.head_dim, mean);
        std::memset(row, 0, cut.width * sizeof(float));
    }
    // what fills up the last panels stays as it is: nothing that comes of it is read
    for (int64_t j = chunk * PACK_BLOCK; j < least((chunk + 1) * PACK_BLOCK, real.total); ++j) {
        const KeyValue read = read_key(a, real, b, head % a.heads, j, row);
        if (a.quantize != 0)
            pack_key_codes(read.k, mean, a.head_dim, cut, j, row, run.codes(thread), packed);
        else
            pack_key(read.k, a.head_dim, j, packed);
        pack_value(read.v, a.head_dim, cut, j, packed);
    }
}

inline void query_task(void *data, int64_t task, int thread) {
    const RunningAttention &run = *static_cast<const RunningAttention *>(data);
    const AttentionCut &cut = run.cut;
    const int64_t blocks = cut.blocks[0] + cut.blocks[1], local = task / blocks, head = run.head + local;
    int64_t block = task % blocks;
    const int64_t segment = block < cut.blocks[0] ? 0 : 1;
    block -= segment == 1 ? cut.blocks[0] : 0;
    const int64_t tile = block / cut.parts[segment], part = block % cut.parts[segment];
    const int64_t first = tile * cut.rows_of[segment] + part * cut.query_block;
    const int64_t end = least((tile + 1) * cut.rows_of[segment], run.a.q_tokens[segment]);
    if (first >= end)
        return;
    float *scratch = run.scratch(thread), *rows = run.rows(thread);
    const int64_t b = head / run.a.heads;
    QueryBlock query{
        run.a,
        cut,
        RealKeys(run.a, b),
        b,
        head % run.a.heads,
        segment,
        first,
        least(end - first, cut.query_block),
        run.packed(local),
        scratch,
        scratch + cut.q_floats,
        scratch + cut.q_floats + cut.logit_floats,
        rows,
        rows + cut.tiles * MR,
        rows + 2 * cut.tiles * MR,
        rows + 3 * cut.tiles * MR,
        run.call,
        thread};
    query.begin(run.row(thread), run.codes(thread));
    if (run.a.counts != nullptr)
        query.visit_listed();
    else
        query.visit(0, query.real.total);
    query.finish();
}

inline int64_t attention_workspace(const kinema_attention_args &a) {
    return AttentionCut(a).bytes(a.threads > 1 ? a.threads : 1);
}

inline void attention(const kinema_attention_args &a, Call &call) {
    RunningAttention run{a, AttentionCut(a), call, 0};
    const int threads = a.threads > 1 ? a.threads : 1;
    for (run.head = 0; run.head < a.batch * a.heads; run.head += run.cut.group) {
        const int64_t here = least(run.cut.group, a.batch * a.heads - run.head);
        if (a.quantize != 0 && !sums_alone(run))
            call.run(threads, here * run.cut.chunks, sum_task, &run);
        call.run(threads, here * run.cut.chunks, pack_task, &run);
        call.run(threads, here * (run.cut.blocks[0] + run.cut.blocks[1]), query_task, &run);
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
