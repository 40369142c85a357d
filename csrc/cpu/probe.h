// Peak throughput of multiply-adds: as many independent chains as fit the registers.
#pragma once

#include <cstdint>
#include <cstring>

namespace kinema {
namespace KINEMA_ISA {

constexpr int PROBE_CHAINS = 2 * MR; // as many accumulators as a tile of micro.h

// Returns the operations done, two per multiply-add. The sums converge to 1, so none becomes subnormal or infinite.
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
    volatile float used = reduce_add(all);
    (void)used;
    return steps * PROBE_CHAINS * W * 2;
}

// The same for an int8 tile of micro.h whose rows and columns are in L1.
inline int64_t probe_i8(int64_t steps) {
    constexpr int64_t DEPTH = 512;
    alignas(64) uint8_t rows[I8_ROWS * DEPTH];
    alignas(64) int8_t columns[NR * DEPTH];
    int32_t sums[I8_ROWS * NR];
    std::memset(rows, 1, sizeof rows);
    std::memset(columns, 1, sizeof columns);
    for (int64_t step = 0; step < steps; step += DEPTH)
        multiply_i8(I8_ROWS, rows, columns, DEPTH, sums, false);
    volatile int32_t used = sums[0];
    (void)used;
    return ceil_div(steps, DEPTH) * DEPTH * I8_ROWS * NR * 2;
}

#if defined(__AVX512BF16__)
// And for a bf16 tile.
inline int64_t probe_bf16(int64_t steps) {
    constexpr int64_t DEPTH = 256;
    alignas(64) uint16_t rows[MR * DEPTH] = {};
    alignas(64) uint16_t columns[NR * DEPTH] = {};
    float sums[MR * NR];
    for (int64_t step = 0; step < steps; step += DEPTH)
        multiply_bf16(MR, NR, rows, PairedTile{}, columns, DEPTH, sums, NR, Accumulated{false});
    volatile float used = sums[0];
    (void)used;
    return ceil_div(steps, DEPTH) * DEPTH * MR * NR * 2;
}
#endif

inline int64_t probe(int32_t dtype, int64_t steps) {
#if defined(__AVX512BF16__)
    if (dtype == KINEMA_BF16)
        return probe_bf16(steps);
#endif
    return dtype == KINEMA_I8 ? probe_i8(steps) : probe_f32(steps);
}

} // namespace KINEMA_ISA
} // namespace kinema
