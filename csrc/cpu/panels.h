// The right matrix: a weight in panels of NR columns, each [depth, NR], packed once and converted panel by panel.
#pragma once

#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// An address to prefetch may lie beyond the end of its array, where pointer arithmetic is undefined.
inline const void *prefetch_address(const void *from, int64_t bytes) {
    return reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes));
}

inline int64_t item_size(int32_t dtype) {
    return dtype == KINEMA_F32 ? 4 : dtype == KINEMA_BF16 || dtype == KINEMA_F16 ? 2 : 1;
}

// Depth as stored: int8 is padded to groups of four, bf16 to pairs where pairs are multiplied.
inline int64_t stored_depth(int64_t depth, int32_t dtype) {
    const int64_t group = dtype == KINEMA_I8 ? 4 : dtype == KINEMA_BF16 ? BF16_GROUP : 1;
    return ceil_div(depth, group) * group;
}

// The column sums of an int8 weight follow its panels, int32 [panels][NR].
inline int64_t column_sums_at(int64_t depth, int64_t columns, int32_t gated) {
    return ceil_div(columns, NR) * (gated ? 2 : 1) * NR * stored_depth(depth, KINEMA_I8);
}

inline int64_t packed_bytes(int64_t depth, int64_t columns, int32_t dtype, int32_t gated) {
    const int64_t numbers = ceil_div(columns, NR) * (gated ? 2 : 1) * NR;
    return numbers * stored_depth(depth, dtype) * item_size(dtype) + (dtype == KINEMA_I8 ? numbers * 4 : 0);
}

// group: consecutive depth values of a column that are adjacent
template <class T> inline void pack_panel(const T *rows, int64_t depth, int64_t width, T *to, int64_t group = 1) {
    for (int64_t k = 0; k < ceil_div(depth, group) * group; ++k)
        for (int64_t c = 0; c < NR; ++c)
            to[(k / group * NR + c) * group + k % group] = c < width && k < depth ? rows[c * depth + k] : T(0);
}

inline void pack_panel_i8(const int8_t *rows, int64_t depth, int64_t width, int8_t *to, int32_t *sums) {
    for (int64_t c = 0; c < NR; ++c)
        sums[c] = 0;
    for (int64_t k = 0; k < stored_depth(depth, KINEMA_I8); ++k)
        for (int64_t c = 0; c < NR; ++c) {
            const int8_t number = c < width && k < depth ? rows[c * depth + k] : int8_t(0);
            to[(k / 4) * 4 * NR + 4 * c + k % 4] = number;
            sums[c] += number;
        }
}

// rows: [columns, depth], or [2·columns, depth] if gated, the gate first; each gate panel precedes its value panel.
inline void
pack_weight(int64_t depth, int64_t columns, int32_t dtype, int32_t gated, const void *rows, void *packed, Call &call) {
    const int64_t halves = gated ? 2 : 1, stored = stored_depth(depth, dtype);
    for (int64_t panel = 0; panel < ceil_div(columns, NR) * halves && !call.interrupted(0); ++panel) {
        const int64_t column = panel / halves * NR, row = panel % halves * columns + column;
        const int64_t width = min(columns - column, NR);
        const char *from = static_cast<const char *>(rows) + row * depth * item_size(dtype);
        char *to = static_cast<char *>(packed) + panel * stored * NR * item_size(dtype);
        if (dtype == KINEMA_I8)
            pack_panel_i8(
                reinterpret_cast<const int8_t *>(from), depth, width, reinterpret_cast<int8_t *>(to),
                reinterpret_cast<int32_t *>(static_cast<char *>(packed) + column_sums_at(depth, columns, gated)) +
                    panel * NR);
        else if (item_size(dtype) == 4)
            pack_panel(reinterpret_cast<const float *>(from), depth, width, reinterpret_cast<float *>(to));
        else if (item_size(dtype) == 2)
            pack_panel(
                reinterpret_cast<const uint16_t *>(from), depth, width, reinterpret_cast<uint16_t *>(to),
                dtype == KINEMA_BF16 ? BF16_GROUP : 1);
        else
            pack_panel(reinterpret_cast<const uint8_t *>(from), depth, width, reinterpret_cast<uint8_t *>(to));
    }
}

template <class T> inline const T *panel_at(const void *weight, int64_t panel, int64_t stored, int64_t k) {
    return static_cast<const T *>(weight) + (panel * stored + k) * NR;
}

// Depth k to k + count of a panel in fp32: in place, or converted into `buffer`. So a weight is read from memory in its
// own format, and the cost of converting is shared by all rows of a block. k is a multiple of 4.
inline const float *
panel_f32(const void *weight, int32_t dtype, int64_t panel, int64_t stored, int64_t k, int64_t count, float *buffer) {
    switch (dtype) {
    case KINEMA_F32:
        return panel_at<float>(weight, panel, stored, k);
    case KINEMA_BF16: {
        const uint16_t *from = panel_at<uint16_t>(weight, panel, stored, k);
#if defined(__AVX512BF16__)
        for (int64_t i = 0; i < count; i += 2)
            for (int c = 0; c < NR; c += W)
                unpack_pairs(from + i * NR + 2 * c, buffer + i * NR + c, buffer + (i + 1) * NR + c);
#else
        for (int64_t i = 0; i < count * NR; i += W)
            store(buffer + i, load_bf16(from + i));
#endif
        break;
    }
    case KINEMA_F16: {
        const uint16_t *from = panel_at<uint16_t>(weight, panel, stored, k);
        for (int64_t i = 0; i < count * NR; i += W)
            store(buffer + i, load_f16(from + i));
        break;
    }
    case KINEMA_E4M3: {
        const uint8_t *from = panel_at<uint8_t>(weight, panel, stored, k);
        for (int64_t i = 0; i < count * NR; i += W)
            store(buffer + i, load_e4m3(from + i));
        break;
    }
    default: {
        const int8_t *from = panel_at<int8_t>(weight, panel, stored, k);
        for (int64_t i = 0; i < count; ++i)
            for (int c = 0; c < NR; ++c)
                buffer[i * NR + c] = static_cast<float>(from[(i / 4) * 4 * NR + 4 * c + i % 4]);
    }
    }
    return buffer;
}

} // namespace KINEMA_ISA
} // namespace kinema
