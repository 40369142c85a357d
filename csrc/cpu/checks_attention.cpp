// Attention has the most to check: its segments, lengths, counts and lists.
#include "arrays.h"
#include "checks.h"

namespace kinema {

namespace {

// Channels whose products of two codes cannot overflow 32 bits: 2^31 / (180 * 90).
constexpr int64_t MAX_QUANTIZED_CHANNELS = 132560;

int64_t all_queries(const kinema_attention_args &a) {
    return a.q_tokens[0] + (a.query_segments > 1 ? a.q_tokens[1] : 0);
}

int64_t all_slots(const kinema_attention_args &a) {
    int64_t slots = 0;
    for (int64_t s = 0; s < a.key_segments; ++s)
        slots += a.slots[s];
    return slots;
}

int64_t query_tile_count(const kinema_attention_args &a) { return (a.q_tokens[0] - 1) / a.query_tile + 1; }

bool is_query_segment(const kinema_attention_args &a, int64_t s) {
    const Axis samples{a.batch, a.q_stride_b[s]}, heads{a.heads, a.q_stride_n[s]};
    return is_array({samples, heads, {a.q_tokens[s], a.q_stride_s[s]}, {a.head_dim, 1}}) &&
           is_non_overlapping(
               {{a.batch, a.out_stride_b[s]}, {a.q_tokens[s], a.out_stride_s[s]}, {a.heads * a.head_dim, 1}});
}

bool is_key_segment(const kinema_attention_args &a, int64_t s) {
    const auto is_readable = [&](int64_t b, int64_t n, int64_t r) {
        return is_array({{a.batch, b}, {a.heads, n}, {a.slots[s], r}, {a.head_dim, 1}});
    };
    return is_readable(a.k_stride_b[s], a.k_stride_n[s], a.k_stride_r[s]) &&
           is_readable(a.v_stride_b[s], a.v_stride_n[s], a.v_stride_r[s]) &&
           (a.cosines[s] == nullptr ||
            is_rotation(a.batch, a.slots[s], a.head_dim, a.rope_stride_b[s], a.rope_start[s], a.rope_tokens[s]));
}

bool are_lists(const kinema_attention_args &a) {
    if (!are_sizes({a.listed, a.query_tile, a.key_tile}) || any_zero({a.query_tile, a.key_tile}))
        return false;
    const int64_t lists = extent({{a.batch, a.list_stride_b}, {a.heads, a.list_stride_n}, {query_tile_count(a), 1}});
    return lists >= 0 && within_max_elements({lists, a.listed});
}

// Whether all listed tiles exist and no count exceeds the capacity of a list.
bool are_listed(const kinema_attention_args &a) {
    const int64_t tiles = std::min(MAX_SIZE, (all_slots(a) + a.key_tile - 1) / a.key_tile);
    for (int64_t b = 0; b < (a.list_stride_b != 0 ? a.batch : 1); ++b)
        for (int64_t n = 0; n < (a.list_stride_n != 0 ? a.heads : 1); ++n)
            for (int64_t tile = 0; tile < query_tile_count(a); ++tile) {
                const int64_t at = b * a.list_stride_b + n * a.list_stride_n + tile;
                if (a.counts[at] < 0 || a.counts[at] > a.listed)
                    return false;
                for (int32_t i = 0; i < a.counts[at]; ++i)
                    if (a.indices[at * a.listed + i] < 0 || a.indices[at * a.listed + i] >= tiles)
                        return false;
            }
    return true;
}

int64_t qk_alignment(const kinema_attention_args &a) { return a.qk_dtype == KINEMA_F32 ? 4 : 2; }

int32_t check_queries(const kinema_attention_args &a, int64_t s) {
    return first_error({check_pointers(qk_alignment(a), {a.q[s]}), check_pointers(4, {a.out[s]})});
}

int32_t check_keys(const kinema_attention_args &a, int64_t s) {
    if ((a.cosines[s] == nullptr) != (a.sines[s] == nullptr))
        return KINEMA_NO_POINTER;
    const int32_t status = first_error(
        {check_pointers(qk_alignment(a), {a.k[s]}), check_pointers(4, {a.v[s]}, {a.cosines[s], a.sines[s]}),
         check_pointers(8, {}, {a.lengths[s]})});
    for (int64_t b = 0; status == KINEMA_OK && a.lengths[s] != nullptr && b < a.batch; ++b)
        if (a.lengths[s][b] < 0 || a.lengths[s][b] > a.slots[s])
            return KINEMA_BAD_INDEX;
    return status;
}

} // namespace

int32_t check_sizes(const kinema_attention_args &a) {
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.heads, a.head_dim}) || a.query_segments < 1 ||
        a.query_segments > 2 || a.key_segments < 1 || a.key_segments > 3 ||
        !are_sizes({a.q_tokens[0], a.query_segments > 1 ? a.q_tokens[1] : 0}))
        return KINEMA_BAD_SIZE;
    for (int64_t s = 0; s < a.key_segments; ++s)
        if (!are_sizes({a.slots[s]}))
            return KINEMA_BAD_SIZE;
    if (a.causal_block < 0 || a.causal_block > MAX_ELEMENTS || a.causal_offset < -MAX_ELEMENTS ||
        a.causal_offset > MAX_ELEMENTS)
        return KINEMA_BAD_SIZE;
    if (a.qk_dtype != KINEMA_F32 && a.qk_dtype != KINEMA_BF16)
        return KINEMA_BAD_DTYPE;
    if (!are_flags({a.quantize, a.interleaved[0], a.interleaved[1], a.interleaved[2]}))
        return KINEMA_BAD_OPTION;
    if (a.query_segments > 1 && (a.causal_block != 0 || a.counts != nullptr || a.residual != nullptr))
        return KINEMA_BAD_OPTION;
    if (!within_max_elements({a.batch, a.heads, all_queries(a), a.head_dim}) ||
        !within_max_elements({all_slots(a), a.head_dim}) || (a.quantize != 0 && a.head_dim > MAX_QUANTIZED_CHANNELS))
        return KINEMA_BAD_SIZE;
    if (any_zero({a.batch, a.heads, a.head_dim, all_queries(a)}))
        return NOTHING_TO_DO;
    for (int64_t s = 0; s < a.query_segments; ++s)
        if (!is_query_segment(a, s))
            return KINEMA_BAD_SIZE;
    for (int64_t s = 0; s < a.key_segments; ++s)
        if (!is_key_segment(a, s))
            return KINEMA_BAD_SIZE;
    if (!is_array_or_null(
            a.residual,
            {{a.batch, a.residual_stride_b}, {a.q_tokens[0], a.residual_stride_s}, {a.heads * a.head_dim, 1}}) ||
        !is_array_or_null(
            a.bias, {{a.batch, a.bias_stride_b},
                     {a.heads, a.bias_stride_n},
                     {all_queries(a), a.bias_stride_s},
                     {all_slots(a), a.bias_stride_r}}))
        return KINEMA_BAD_SIZE;
    return a.counts == nullptr || are_lists(a) ? KINEMA_OK : KINEMA_BAD_SIZE;
}

int32_t check_memory(const kinema_attention_args &a) {
    for (int64_t s = 0; s < a.query_segments; ++s)
        if (const int32_t status = check_queries(a, s); a.q_tokens[s] > 0 && status != KINEMA_OK)
            return status;
    for (int64_t s = 0; s < a.key_segments; ++s)
        if (const int32_t status = a.slots[s] > 0 ? check_keys(a, s) : KINEMA_OK; status != KINEMA_OK)
            return status;
    const int32_t status = first_error(
        {check_pointers(4, {}, {a.bias, a.residual, a.indices, a.counts}), check_pointers(CACHE_LINE, {a.workspace})});
    if (status != KINEMA_OK)
        return status;
    if (a.counts == nullptr)
        return a.indices == nullptr ? KINEMA_OK : KINEMA_NO_POINTER;
    if (a.indices == nullptr && a.listed > 0)
        return KINEMA_NO_POINTER;
    return are_listed(a) ? KINEMA_OK : KINEMA_BAD_INDEX;
}

} // namespace kinema
