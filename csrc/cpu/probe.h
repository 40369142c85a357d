// How fast multiply-adds can go: chains of them that wait for nothing but themselves, as many as the registers hold.
#pragma once

#include <cstdint>

namespace kinema {
namespace KINEMA_ISA {

constexpr int PROBE_CHAINS = 2 * MR; // as many sums as a tile of micro.h

// Operations done: two for every multiply-add. The sums converge to 1, so none becomes subnormal or infinite.
inline int64_t probe_f32(int64_t steps) {
    V sums[PROBE_CHAINS];
    const V factor = set1(0.5f), term = set1(0.5f);
#pragma GCC unroll 64
    for (int c = 0; c < PROBE_CHAINS; ++c)
        sums[c] = set1(static_cast<float>(c));
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 64
        for (int c = 0; c < PROBE_CHAINS; ++c)
            sums[c] = fma(sums[c], factor, term);
    }
    V all = sums[0];
#pragma GCC unroll 64
    for (int c = 1; c < PROBE_CHAINS; ++c)
        all = add(all, sums[c]);
    volatile float used = sum(all);
    (void)used;
    return steps * PROBE_CHAINS * W * 2;
}

// The same of the step of the exact int8 product: a vector of columns of 4 features, read from the nearest cache.
inline int64_t probe_i8(int64_t steps) {
    constexpr int ROWS = 2, VECTORS = 2;
    int8_t rows[8 * ROWS], columns[4 * I8_LANES * VECTORS];
    for (int i = 0; i < 8 * ROWS; ++i)
        rows[i] = i % 8 < 4 ? 1 : 0; // four sizes, and no sign
    for (int i = 0; i < 4 * I8_LANES * VECTORS; ++i)
        columns[i] = i % 2 ? 1 : -1; // the sums stay 0
    I8Sum sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = i8_set1(0);
    for (int64_t step = 0; step < steps; ++step) {
        __asm__ volatile("" : : "r"(rows), "r"(columns) : "memory"); // or all but the sums would be done once
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const I8Row row = i8_row(rows + 8 * r);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                i8_step(sums[r][v], row, columns + 4 * I8_LANES * v);
        }
    }
    int32_t lanes[I8_LANES];
    volatile int32_t used = 0;
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            i8_store(lanes, sums[r][v]);
            used = used + lanes[0];
        }
    return steps * ROWS * VECTORS * I8_LANES * 4 * 2;
}

inline int64_t probe(int32_t dtype, int64_t steps) { return dtype == KINEMA_I8 ? probe_i8(steps) : probe_f32(steps); }

} // namespace KINEMA_ISA
} // namespace kinema
