// Keys and values of attention: which are valid, how the work is tiled, and how a head is packed.
#pragma once

#include <cstdint>
#include <cstring>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t QUERY_BLOCK = 96;       // rows at most; with KEY_BLOCK 98 KB of logits
constexpr int64_t KEY_BLOCK = 256;        // keys; at 128 channels 131 KB each of keys and values
constexpr int64_t PACK_BLOCK = 512;       // keys that one task packs
constexpr int64_t PACKED_LIMIT = 1 << 24; // bytes of keys and values packed at once, unless one head has more

// Where the valid keys of a sample are among all slots: they come first in each segment.
struct ValidKeys {
    int64_t count[3], first[3], slot[3], total;

    ValidKeys(const kinema_attention_args &a, int64_t b) : count{}, first{}, slot{}, total(0) {
        int64_t slots = 0;
        for (int64_t s = 0; s < a.key_segments; ++s) {
            const int64_t given = a.lengths[s] != nullptr ? a.lengths[s][b] : a.slots[s];
            count[s] = max(0, min(given, a.slots[s]));
            first[s] = total;
            slot[s] = slots;
            total += count[s];
            slots += a.slots[s];
        }
    }

    // The number of valid keys before slot `end`.
    int64_t before(const kinema_attention_args &a, int64_t end) const {
        int64_t found = 0;
        for (int64_t s = 0; s < a.key_segments; ++s)
            found += max(0, min(end - slot[s], count[s]));
        return found;
    }
};

inline int64_t all_slots(const kinema_attention_args &a) {
    int64_t slots = 0;
    for (int64_t s = 0; s < a.key_segments; ++s)
        slots += a.slots[s];
    return slots;
}

// The tiling of attention, and the layout of its scratch.
struct AttentionTiling {
    int64_t key_panels, value_panels;      // of NR keys, of NR channels
    int64_t keys, key_floats, head_floats; // packed, of one head
    int64_t chunks;                        // of keys, one per packing task
    int64_t group;                         // heads at once
    int64_t query_block;                   // query rows per task
    int64_t tiles, blocks[2], tile_rows[2], tile_blocks[2];
    int64_t code_groups, sum_floats; // int8: groups of four channels, and a scale and an offset of each key; sums
    int64_t width;                   // channels of a scratch row, padded to whole vectors
    int64_t q_floats, logit_floats, out_floats, row_floats, thread_floats;

    explicit AttentionTiling(const kinema_attention_args &a) {
        key_panels = ceil_div(all_slots(a), NR);
        value_panels = ceil_div(a.head_dim, NR);
        keys = key_panels * NR;
        chunks = ceil_div(keys, PACK_BLOCK);
        code_groups = ceil_div(a.head_dim, 4);
        const int64_t halves = a.qk_dtype == KINEMA_BF16 ? 2 : 1; // numbers in 32 bits
        key_floats = a.quantize != 0 ? keys * (code_groups + 2) : keys * ceil_div(a.head_dim, halves);
        sum_floats = a.quantize != 0 ? 2 * chunks * a.head_dim : 0;
        head_floats = key_floats + keys * value_panels * NR / halves;
        const int64_t heads = a.batch * a.heads;
        group = min(heads, max(1, PACKED_LIMIT / 4 / max(1, head_floats)));
        // few short heads get smaller blocks, so that no thread waits long for the last one
        const int64_t queries = a.q_tokens[0] + (a.query_segments > 1 ? a.q_tokens[1] : 0);
        const int64_t threads = max(1, a.threads), wanted = ceil_div(heads * queries, 4 * threads);
        query_block = threads == 1 ? QUERY_BLOCK : min(QUERY_BLOCK, ceil_div(max(wanted, 4 * MR), MR) * MR);
        int64_t rows = 1;
        for (int64_t s = 0; s < 2; ++s) {
            const int64_t tokens = s < a.query_segments ? a.q_tokens[s] : 0;
            // the queries of a block share one list of tiles
            tile_rows[s] = a.counts != nullptr ? a.query_tile : max(1, tokens);
            tile_blocks[s] = ceil_div(min(tile_rows[s], tokens), query_block);
            blocks[s] = tokens > 0 ? ceil_div(tokens, tile_rows[s]) * tile_blocks[s] : 0;
            rows = max(rows, min(query_block, min(tile_rows[s], tokens)));
        }
        tiles = ceil_div(rows, MR);
        q_floats = tiles * MR * ceil_div(a.head_dim, KB) * KB / halves;
        logit_floats = tiles * MR * KEY_BLOCK;
        out_floats = tiles * MR * value_panels * NR;
        width = ceil_div(a.head_dim, 16) * 16;
        row_floats = ceil_div(4 * tiles * MR, 16) * 16 + 2 * width + ceil_div(width, 64) * 16;
        thread_floats = q_floats + logit_floats + out_floats + row_floats;
    }

    int64_t bytes(int32_t threads) const { return 4 * (group * (head_floats + sum_floats) + threads * thread_floats); }
};

// A valid key's place among the slots.
struct KeyPlace {
    int64_t segment, slot;
    KeyPlace(const kinema_attention_args &a, const ValidKeys &valid, int64_t j) : segment(a.key_segments - 1) {
        while (j < valid.first[segment])
            --segment;
        slot = j - valid.first[segment];
    }
};

// x in fp32, from qk_dtype: x itself or `row`.
inline const float *widened(const kinema_attention_args &a, const void *x, int64_t at, float *row) {
    if (a.qk_dtype == KINEMA_F32)
        return static_cast<const float *>(x) + at;
    widen_row(static_cast<const uint16_t *>(x) + at, a.head_dim, row);
    return row;
}

// The jth valid key of a head, rotated if need be; row: scratch.
inline const float *
read_key(const kinema_attention_args &a, const ValidKeys &valid, int64_t b, int64_t n, int64_t j, float *row) {
    const KeyPlace at(a, valid, j);
    const int64_t s = at.segment;
    const float *k = widened(a, a.k[s], b * a.k_stride_b[s] + n * a.k_stride_n[s] + at.slot * a.k_stride_r[s], row);
    const int64_t position = a.cosines[s] != nullptr ? at.slot - a.rope_start[s] : -1;
    if (position < 0 || position >= a.rope_tokens[s])
        return k;
    if (k != row)
        std::memcpy(row, k, a.head_dim * sizeof(float));
    const int64_t table = b * a.rope_stride_b[s] + position * (a.head_dim / 2);
    rotate(row, a.cosines[s] + table, a.sines[s] + table, a.head_dim / 2, a.interleaved[s] != 0);
    return row;
}

// And its value.
inline const float *
read_value(const kinema_attention_args &a, const ValidKeys &valid, int64_t b, int64_t n, int64_t j) {
    const KeyPlace at(a, valid, j);
    const int64_t s = at.segment;
    return a.v[s] + b * a.v_stride_b[s] + n * a.v_stride_n[s] + at.slot * a.v_stride_r[s];
}

// A head's packed keys are [panel][channel][NR], its values [panel of channels][key][NR].
inline void pack_key(const float *k, int64_t head_dim, int64_t j, float *packed) {
    float *key = packed + j / NR * NR * head_dim + j % NR;
    for (int64_t d = 0; d < head_dim; ++d)
        key[d * NR] = k[d];
}

inline void pack_value(const float *v, int64_t head_dim, const AttentionTiling &tiling, int64_t j, float *packed) {
    for (int64_t p = 0; p < tiling.value_panels; ++p) {
        float *value = packed + tiling.key_floats + (p * tiling.keys + j) * NR;
        const float *from = v + p * NR;
        if (head_dim - p * NR >= NR) // whole panels by a constant length, which compiles to plain moves
            std::memcpy(value, from, NR * sizeof(float));
        else
            std::memcpy(value, from, (head_dim - p * NR) * sizeof(float));
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
