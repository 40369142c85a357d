// Checks that sizes, strides and pointers describe a valid array. All arithmetic here is exact: nothing overflows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kinema.h"

namespace kinema {

constexpr int64_t MAX_SIZE = INT32_MAX;     // of one axis
constexpr int64_t MAX_ELEMENTS = 1ll << 44; // from the first to the last of an array: 70 TB of fp32
constexpr int64_t CACHE_LINE = 64;          // alignment of packed weights and scratch

struct Axis {
    int64_t size, stride;
};

// Whether each is a valid axis size; zero is.
inline bool are_sizes(std::initializer_list<int64_t> sizes) {
    return std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size >= 0 && size <= MAX_SIZE; });
}

inline bool are_flags(std::initializer_list<int32_t> options) {
    return std::all_of(options.begin(), options.end(), [](int32_t option) { return option == 0 || option == 1; });
}

inline bool any_zero(std::initializer_list<int64_t> sizes) {
    return std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size == 0; });
}

// Whether the product of non-negative sizes is a possible number of elements.
inline bool within_max_elements(std::initializer_list<int64_t> sizes) {
    int64_t count = 1;
    if (any_zero(sizes))
        return true;
    for (const int64_t size : sizes) {
        if (size > MAX_ELEMENTS / count)
            return false;
        count *= size;
    }
    return true;
}

// Elements from the first of an array to one past its last, 0 if it is empty; -1 if no such array is possible.
inline int64_t extent(std::initializer_list<Axis> axes) {
    int64_t last = 0;
    for (const Axis &axis : axes)
        if (axis.size == 0)
            return 0;
    for (const Axis &axis : axes) {
        if (axis.size == 1)
            continue;
        if (axis.stride < 0 || (axis.stride > 0 && axis.size - 1 > (MAX_ELEMENTS - 1 - last) / axis.stride))
            return -1;
        last += (axis.size - 1) * axis.stride;
    }
    return last + 1;
}

inline bool is_array(std::initializer_list<Axis> axes) { return extent(axes) >= 0; }

// The same for an optional array: the strides of a null pointer are ignored.
inline bool is_array_or_null(const void *array, std::initializer_list<Axis> axes) {
    return array == nullptr || is_array(axes);
}

// Whether this is an array of which no two elements overlap, so that it can be written to. Up to five axes.
inline bool is_non_overlapping(std::initializer_list<Axis> axes) {
    const int64_t span = extent(axes);
    if (span <= 0)
        return span == 0;
    Axis sorted[5];
    int64_t count = 0, reach = 1;
    for (const Axis &axis : axes) { // insertion sort by stride
        int64_t at = axis.size > 1 ? count++ : -1;
        for (; at > 0 && sorted[at - 1].stride > axis.stride; --at)
            sorted[at] = sorted[at - 1];
        if (at >= 0)
            sorted[at] = axis;
    }
    for (int64_t i = 0; i < count; ++i) {
        if (sorted[i].stride < reach)
            return false;
        reach += (sorted[i].size - 1) * sorted[i].stride;
    }
    return true;
}

// A rotation of tokens `start` to `start + count` by tables [batch, count, head_dim / 2].
inline bool
is_rotation(int64_t batch, int64_t tokens, int64_t head_dim, int64_t stride_b, int64_t start, int64_t count) {
    return head_dim % 2 == 0 && start >= 0 && count >= 0 && start <= tokens && count <= tokens - start &&
           is_array({{batch, stride_b}, {count, head_dim / 2}, {head_dim / 2, 1}});
}

// Whether each pointer is a multiple of `alignment`; optional ones may be null.
inline int32_t check_pointers(
    int64_t alignment, std::initializer_list<const void *> needed, std::initializer_list<const void *> optional = {}) {
    uintptr_t bits = 0;
    for (const void *pointer : needed) {
        if (pointer == nullptr)
            return KINEMA_NO_POINTER;
        bits |= reinterpret_cast<uintptr_t>(pointer);
    }
    for (const void *pointer : optional)
        bits |= reinterpret_cast<uintptr_t>(pointer);
    return bits % static_cast<uintptr_t>(alignment) == 0 ? KINEMA_OK : KINEMA_MISALIGNED;
}

// The first status that is not success.
inline int32_t first_error(std::initializer_list<int32_t> statuses) {
    for (const int32_t status : statuses)
        if (status != KINEMA_OK)
            return status;
    return KINEMA_OK;
}

} // namespace kinema
