// Attention without a matrix of logits: Dao 2023 (FlashAttention-2, arXiv 2307.08691), blocked for the second-level
// cache.
//
// Heads are taken a few at a time. First their keys and values are packed into panels (rotated, if need be, and without
// the slots that are not real); then every block of queries goes over them with a running maximum and sum.
#pragma once

#include <cstdint>
#include <cstring>

#include "kinema.h"
#include "pool.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t QUERY_BLOCK = 96;       // rows at most; with KEY_BLOCK 98 KB of logits
constexpr int64_t KEY_BLOCK = 256;        // keys; of 128 channels 131 KB each of keys and values
constexpr int64_t PACK_BLOCK = 512;       // keys that a thread packs at once
constexpr int64_t PACKED_LIMIT = 1 << 24; // bytes of keys and values that are packed at once, if a head has no more

// Where the real keys of a sample lie among all slots: those of a segment come first in it.
struct RealKeys {
    int64_t count[3], first[3], slot[3], total;

    RealKeys(const kinema_attention_args &a, int64_t b) : count{}, first{}, slot{}, total(0) {
        int64_t slots = 0;
        for (int64_t s = 0; s < a.key_segments; ++s) {
            const int64_t given = a.lengths[s] != nullptr ? a.lengths[s][b] : a.slots[s];
            count[s] = most(0, least(given, a.slots[s]));
            first[s] = total;
            slot[s] = slots;
            total += count[s];
            slots += a.slots[s];
        }
    }

    // How many real keys lie before a slot.
    int64_t before(const kinema_attention_args &a, int64_t where) const {
        int64_t found = 0;
        for (int64_t s = 0; s < a.key_segments; ++s)
            found += most(0, least(where - slot[s], count[s]));
        return found;
    }
};

inline int64_t all_slots(const kinema_attention_args &a) {
    int64_t slots = 0;
    for (int64_t s = 0; s < a.key_segments; ++s)
        slots += a.slots[s];
    return slots;
}

// How attention is cut, and where its scratch lies.
struct AttentionCut {
    int64_t key_panels, value_panels; // of NR keys, of NR channels
    int64_t keys, head_floats;        // packed, of one head
    int64_t group;                    // heads at once
    int64_t query_block;              // rows of a task
    int64_t tiles, blocks[2], rows_of[2], parts[2];
    int64_t q_floats, logit_floats, out_floats, row_floats, thread_floats;

    explicit AttentionCut(const kinema_attention_args &a) {
        key_panels = ceil_div(all_slots(a), NR);
        value_panels = ceil_div(a.head_dim, NR);
        keys = key_panels * NR;
        head_floats = keys * a.head_dim + keys * value_panels * NR;
        const int64_t heads = a.batch * a.heads;
        group = least(heads, most(1, PACKED_LIMIT / 4 / most(1, head_floats)));
        // few short heads are cut finer, so that no thread waits long for the last one
        const int64_t queries = a.q_tokens[0] + (a.query_segments > 1 ? a.q_tokens[1] : 0);
        const int64_t threads = most(1, a.threads), wanted = ceil_div(heads * queries, 4 * threads);
        query_block = threads == 1 ? QUERY_BLOCK : least(QUERY_BLOCK, ceil_div(most(wanted, 4 * MR), MR) * MR);
        int64_t rows = 1;
        for (int64_t s = 0; s < 2; ++s) {
            const int64_t tokens = s < a.query_segments ? a.q_tokens[s] : 0;
            // a block of queries reads one list of tiles
            rows_of[s] = a.indices != nullptr ? a.query_tile : most(1, tokens);
            parts[s] = ceil_div(least(rows_of[s], tokens), query_block);
            blocks[s] = tokens > 0 ? ceil_div(tokens, rows_of[s]) * parts[s] : 0;
            rows = most(rows, least(query_block, least(rows_of[s], tokens)));
        }
        tiles = ceil_div(rows, MR);
        q_floats = tiles * MR * ceil_div(a.head_dim, KB) * KB;
        logit_floats = tiles * MR * KEY_BLOCK;
        out_floats = tiles * MR * value_panels * NR;
        row_floats = ceil_div(3 * tiles * MR + a.head_dim, 16) * 16;
        thread_floats = q_floats + logit_floats + out_floats + row_floats;
    }

    int64_t bytes(int32_t threads) const { return 4 * (group * head_floats + threads * thread_floats); }
};

// One head's packed keys [panel][channel][NR], then its values [panel of channels][key][NR].
inline void pack_keys(
    const kinema_attention_args &a, const AttentionCut &cut, int64_t b, int64_t n, int64_t from, int64_t to,
    float *packed, float *row) {
    const RealKeys real(a, b);
    float *values = packed + cut.keys * a.head_dim;
    const int64_t padded = cut.value_panels * NR;
    for (int64_t j = from; j < to; ++j) {
        float *key = packed + j / NR * NR * a.head_dim + j % NR;
        if (j >= real.total) { // what fills up a panel
            for (int64_t d = 0; d < a.head_dim; ++d)
                key[d * NR] = 0.0f;
            for (int64_t d = 0; d < padded; ++d)
                values[(d / NR * cut.keys + j) * NR + d % NR] = 0.0f;
            continue;
        }
        int64_t s = a.key_segments - 1;
        while (j < real.first[s])
            --s;
        const int64_t slot = j - real.first[s];
        const float *k = a.k[s] + b * a.k_stride_b[s] + n * a.k_stride_n[s] + slot * a.k_stride_r[s];
        const float *v = a.v[s] + b * a.v_stride_b[s] + n * a.v_stride_n[s] + slot * a.v_stride_r[s];
        const int64_t turned = slot - a.rope_start[s];
        if (a.cosines[s] != nullptr && turned >= 0 && turned < a.rope_tokens[s]) {
            std::memcpy(row, k, a.head_dim * sizeof(float));
            const int64_t table = b * a.rope_stride_b[s] + turned * (a.head_dim / 2);
            rotate(row, a.cosines[s] + table, a.sines[s] + table, a.head_dim / 2, a.interleaved[s] != 0);
            k = row;
        }
        for (int64_t d = 0; d < a.head_dim; ++d)
            key[d * NR] = k[d];
        for (int64_t p = 0; p < cut.value_panels; ++p) {
            const int64_t width = least(a.head_dim - p * NR, NR);
            float *place_of_value = values + (p * cut.keys + j) * NR;
            std::memcpy(place_of_value, v + p * NR, width * sizeof(float));
            for (int64_t d = width; d < NR; ++d)
                place_of_value[d] = 0.0f;
        }
    }
}

// A block of queries on its way over the keys of a head.
struct QueryBlock {
    const kinema_attention_args &a;
    const AttentionCut &cut;
    const RealKeys real;
    int64_t b, n, segment, first, count; // rows first to first + count of a segment
    const float *keys, *values;
    float *q, *logits, *sums, *top, *total, *fade;

    int64_t tiles() const { return ceil_div(count, MR); }
    int64_t padded() const { return cut.value_panels * NR; }

    void begin() {
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
            top[r] = -__builtin_inff();
            total[r] = 0.0f;
        }
        std::memset(sums, 0, tiles() * MR * padded() * sizeof(float));
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

    // Real keys from lo up to hi.
    void visit(int64_t lo, int64_t hi) {
        if (a.causal_block != 0)
            hi = least(hi, limit(count - 1));
        if (hi <= lo)
            return;
        for (int64_t key = lo / NR * NR; key < hi; key += KEY_BLOCK) {
            const int64_t from = most(0, lo - key), to = least(hi - key, KEY_BLOCK);
            for (int64_t panel = from / NR; panel * NR < to; ++panel)
                for (int64_t i = 0; i < tiles(); ++i)
                    multiply_f32(
                        static_cast<int>(least(count - i * MR, MR)), q + i * MR * ceil_div(a.head_dim, KB) * KB,
                        Packed{}, keys + (key / NR + panel) * NR * a.head_dim, a.head_dim,
                        logits + i * MR * KEY_BLOCK + panel * NR, KEY_BLOCK, false);
            for (int64_t r = 0; r < count; ++r)
                weigh(r, key, from, to);
            for (int64_t panel = 0; panel < cut.value_panels; ++panel)
                for (int64_t i = 0; i < tiles(); ++i)
                    multiply_f32(
                        static_cast<int>(least(count - i * MR, MR)), logits + i * MR * KEY_BLOCK + from,
                        Rowwise{KEY_BLOCK}, values + (panel * cut.keys + key + from) * NR, to - from,
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
    int64_t head; // the first of the group
    float *packed() const { return static_cast<float *>(a.workspace); }
    float *scratch(int thread) const { return packed() + cut.group * cut.head_floats + thread * cut.thread_floats; }
};

inline void pack_task(void *data, int64_t task, int thread) {
    const RunningAttention &run = *static_cast<const RunningAttention *>(data);
    const int64_t chunks = ceil_div(run.cut.keys, PACK_BLOCK), local = task / chunks, head = run.head + local;
    const int64_t from = task % chunks * PACK_BLOCK;
    const AttentionCut &cut = run.cut;
    float *row = run.scratch(thread) + cut.q_floats + cut.logit_floats + cut.out_floats + 3 * cut.tiles * MR;
    pack_keys(
        run.a, cut, head / run.a.heads, head % run.a.heads, from, least(from + PACK_BLOCK, cut.keys),
        run.packed() + local * cut.head_floats, row);
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
    float *scratch = run.scratch(thread), *rows = scratch + cut.q_floats + cut.logit_floats + cut.out_floats;
    const int64_t b = head / run.a.heads;
    const float *packed = run.packed() + local * cut.head_floats;
    QueryBlock query{
        run.a,
        cut,
        RealKeys(run.a, b),
        b,
        head % run.a.heads,
        segment,
        first,
        least(end - first, cut.query_block),
        packed,
        packed + cut.keys * run.a.head_dim,
        scratch,
        scratch + cut.q_floats,
        scratch + cut.q_floats + cut.logit_floats,
        rows,
        rows + cut.tiles * MR,
        rows + 2 * cut.tiles * MR};
    query.begin();
    if (run.a.indices != nullptr)
        query.visit_listed();
    else
        query.visit(0, query.real.total);
    query.finish();
}

inline int64_t attention_workspace(const kinema_attention_args &a) {
    return AttentionCut(a).bytes(a.threads > 1 ? a.threads : 1);
}

inline void attention(const kinema_attention_args &a, Pool &pool) {
    RunningAttention run{a, AttentionCut(a), 0};
    const int threads = a.threads > 1 ? a.threads : 1;
    for (run.head = 0; run.head < a.batch * a.heads; run.head += run.cut.group) {
        const int64_t here = least(run.cut.group, a.batch * a.heads - run.head);
        pool.run(threads, here * ceil_div(run.cut.keys, PACK_BLOCK), pack_task, &run);
        pool.run(threads, here * (run.cut.blocks[0] + run.cut.blocks[1]), query_task, &run);
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
