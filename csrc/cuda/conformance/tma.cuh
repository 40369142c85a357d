// Bulk tensor copies (TMA): swizzles and out-of-bounds elements; and the mbarriers that signal completion.
#pragma once

#include <cuda.h>

#include "vectors.h"

namespace conformance {

constexpr int STORED_ROWS = 24, STORED_COLUMNS = 80; // of the matrix in memory, bf16
constexpr int ROWS = 22, COLUMNS = 75; // the part that the tensor map declares: nothing beyond may be read
constexpr int BOX_ROWS = 16, CORNERS = 4;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CONFORMANCE_TMA
#endif

__device__ inline void barrier_init(uint64_t *barrier, int count) {
#ifdef CONFORMANCE_TMA
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

__device__ inline void barrier_arrive(uint64_t *barrier) {
#ifdef CONFORMANCE_TMA
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

__device__ inline void barrier_arrive_expecting(uint64_t *barrier, int bytes) {
#ifdef CONFORMANCE_TMA
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}

__device__ inline void barrier_complete(uint64_t *barrier, int bytes) {
#ifdef CONFORMANCE_TMA
    asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}

// Whether the phase of this parity has completed.
__device__ inline int barrier_test(uint64_t *barrier, int parity) {
    int ended = 0;
#ifdef CONFORMANCE_TMA
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(ended)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
#endif
    return ended;
}

// One block per corner [x, y]; result: [CORNERS, bytes], shared memory after the copy.
__global__ void
copy_boxes(const __grid_constant__ CUtensorMap map, const int32_t *corners, int bytes, uint8_t *result) {
#ifdef CONFORMANCE_TMA
    extern __shared__ __align__(1024) uint8_t box[];
    uint64_t *barrier = reinterpret_cast<uint64_t *>(box + bytes);
    if (shared_address(box) % 1024)
        __trap(); // swizzles depend on the address
    for (int i = threadIdx.x; i < bytes; i += 32)
        box[i] = 0xa5; // marks bytes that are not written
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (threadIdx.x == 0) {
        barrier_arrive_expecting(barrier, bytes);
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(box)),
                     "l"(&map), "r"(shared_address(barrier)), "r"(corners[2 * blockIdx.x]),
                     "r"(corners[2 * blockIdx.x + 1])
                     : "memory");
    }
    while (!barrier_test(barrier, 0)) {
    }
    for (int i = threadIdx.x; i < bytes; i += 32)
        result[blockIdx.x * bytes + i] = box[i];
#endif
}

using Encode = CUresult (*)(
    CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, without linking the driver.
inline Encode encoder() {
    void *found = nullptr;
    cudaDriverEntryPointQueryResult status{};
    CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status));
    if (status != cudaDriverEntryPointSuccess || !found)
        fail("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(found);
}

// swizzle: in bytes, also the width of a box; 0 for none, and 32 bytes.
inline void record_copies(Vectors &to, int swizzle) {
    const int width = (swizzle ? swizzle : 32) / 2, bytes = BOX_ROWS * width * 2;
    std::vector<uint16_t> stored(STORED_ROWS * STORED_COLUMNS);
    for (uint16_t &value : stored)
        value = static_cast<uint16_t>(to.random.bits() | 1); // never zero, unlike elements out of bounds
    // inside; across the right and lower border; across the left and upper one; entirely outside
    const std::vector<int32_t> corners = {8, 3, COLUMNS - width / 2, ROWS - 5, -5, -2, COLUMNS + 8, 0};
    const OnDevice<uint16_t> matrix(stored);
    const OnDevice<uint8_t> boxes(CORNERS * static_cast<size_t>(bytes));
    const cuuint64_t size[2] = {COLUMNS, ROWS}, pitch[1] = {STORED_COLUMNS * sizeof(uint16_t)};
    const cuuint32_t box[2] = {static_cast<cuuint32_t>(width), BOX_ROWS}, steps[2] = {1, 1};
    const CUtensorMapSwizzle mode = swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                    : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                    : swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                    : CU_TENSOR_MAP_SWIZZLE_NONE;
    CUtensorMap map;
    const CUresult code = encoder()(
        &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, static_cast<uint16_t *>(matrix), size, pitch, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, mode, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS)
        fail("cuTensorMapEncodeTiled gives " + std::to_string(code));
    copy_boxes<<<CORNERS, 32, bytes + sizeof(uint64_t)>>>(map, OnDevice<int32_t>(corners), bytes, boxes);
    to.begin(
        "tma " + (swizzle ? std::to_string(swizzle) + "-byte swizzle" : std::string("no swizzle")), "tma",
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes");
    to.option("swizzle", swizzle);
    to.option("rows", ROWS);
    to.option("columns", COLUMNS);
    to.option("box_rows", BOX_ROWS);
    to.option("box_columns", width);
    to.array("matrix", {STORED_ROWS, STORED_COLUMNS}, stored);
    to.array("corners", {CORNERS, 2}, corners);
    to.array("boxes", {CORNERS, bytes}, boxes.values());
}

// Operations on a barrier: arrive, arrive and expect bytes, complete bytes.
constexpr int ARRIVE = 0, EXPECT = 1, COMPLETE = 2;

// operations: [count, 2], operation and bytes. ended: [count + 1, 2], by parity, before the first and after each.
__global__ void drive_barrier(int arrivals, const int32_t *operations, int count, int32_t *ended) {
    __shared__ uint64_t barrier;
    barrier_init(&barrier, arrivals);
    for (int i = 0; i <= count; ++i) {
        for (int parity = 0; parity < 2; ++parity)
            ended[2 * i + parity] = barrier_test(&barrier, parity);
        if (i == count)
            return;
        const int bytes = operations[2 * i + 1];
        if (operations[2 * i] == ARRIVE)
            barrier_arrive(&barrier);
        else if (operations[2 * i] == EXPECT)
            barrier_arrive_expecting(&barrier, bytes);
        else
            barrier_complete(&barrier, bytes);
    }
}

inline void record_barrier(Vectors &to) {
    const int arrivals = 2;
    const std::vector<int32_t> operations = {
        ARRIVE,   0,  ARRIVE,   0,                              // a phase
        EXPECT,   64, ARRIVE,   0,  COMPLETE, 32, COMPLETE, 32, // one that ends with its bytes
        EXPECT,   16, COMPLETE, 16, EXPECT,   8,  COMPLETE, 8,  // the first bytes complete before the phase can end
        COMPLETE, 48, EXPECT,   48, ARRIVE,   0};               // bytes that complete before they are expected
    const int count = static_cast<int>(operations.size()) / 2;
    const OnDevice<int32_t> ended(2 * static_cast<size_t>(count + 1));
    drive_barrier<<<1, 1>>>(arrivals, OnDevice<int32_t>(operations), count, ended);
    to.begin("mbarrier", "mbarrier", "mbarrier.test_wait.parity.shared::cta.b64");
    to.option("arrivals", arrivals);
    to.array("operations", {count, 2}, operations);
    to.array("ended", {count + 1, 2}, ended.values());
}

inline void record_tma(Vectors &to, int capability) {
    if (capability < 90) {
        to.absent("tma", "needs compute capability 90");
        to.absent("mbarrier", "needs compute capability 90");
        return;
    }
    for (int swizzle : {0, 32, 64, 128})
        record_copies(to, swizzle);
    record_barrier(to);
}

} // namespace conformance
