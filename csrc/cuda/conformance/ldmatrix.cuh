// ldmatrix: which halves of which row each lane receives.
#pragma once

#include "vectors.h"

namespace conformance {

constexpr int MATRIX_ROWS = 64; // of 8 halves, in shared memory

template <int COUNT, bool TRANSPOSED>
__global__ void load_matrices(const uint16_t *rows, const int32_t *of_lane, uint32_t *registers) {
    __shared__ __align__(16) uint16_t stored[MATRIX_ROWS * 8];
    const int lane = threadIdx.x;
    for (int i = lane; i < MATRIX_ROWS * 8; i += 32)
        stored[i] = rows[i];
    __syncwarp();
    const uint32_t at = shared_address(stored + of_lane[lane] * 8);
    uint32_t r[4] = {};
    if constexpr (COUNT == 1 && !TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
    if constexpr (COUNT == 1 && TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
    if constexpr (COUNT == 2 && !TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(at)
                     : "memory");
    if constexpr (COUNT == 2 && TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(at)
                     : "memory");
    if constexpr (COUNT == 4 && !TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    if constexpr (COUNT == 4 && TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    for (int i = 0; i < COUNT; ++i)
        registers[lane * COUNT + i] = r[i];
}

template <int COUNT, bool TRANSPOSED> void record_ldmatrix_of(Vectors &to) {
    std::vector<uint16_t> rows(MATRIX_ROWS * 8);
    std::vector<int32_t> of_lane(32);
    for (uint16_t &value : rows)
        value = static_cast<uint16_t>(to.random.bits());
    for (int32_t &row : of_lane)
        row = to.random.below(MATRIX_ROWS);
    OnDevice<uint32_t> registers(32 * COUNT);
    load_matrices<COUNT, TRANSPOSED><<<1, 32>>>(OnDevice<uint16_t>(rows), OnDevice<int32_t>(of_lane), registers);
    const std::string shape = "x" + std::to_string(COUNT) + (TRANSPOSED ? ".trans" : "");
    to.begin("ldmatrix " + shape, "ldmatrix", "ldmatrix.sync.aligned.m8n8." + shape + ".shared.b16");
    to.option("count", COUNT);
    to.option("transposed", TRANSPOSED);
    to.array("rows", {MATRIX_ROWS, 8}, rows);
    to.array("row_of_lane", {32}, of_lane);
    to.array("registers", {32, COUNT}, registers.values());
}

inline void record_ldmatrix(Vectors &to) {
    record_ldmatrix_of<1, false>(to);
    record_ldmatrix_of<1, true>(to);
    record_ldmatrix_of<2, false>(to);
    record_ldmatrix_of<2, true>(to);
    record_ldmatrix_of<4, false>(to);
    record_ldmatrix_of<4, true>(to);
}

} // namespace conformance
