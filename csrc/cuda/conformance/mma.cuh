// mma.sync: fragments, and how sums are rounded. Each trial draws its operands differently.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace conformance {

constexpr int TRIALS = 6;
// 0, 1: of order 1. 2: a wide range of exponents, which shows how products are aligned. 3: sums that cancel. 4: no
// accumulator. 5: NaN, infinities, zeros and subnormals of the format; for integers, the most negative.
constexpr int WIDE_RANGE = 2, CANCELLING = 3, FROM_ZERO = 4, SPECIAL = 5;

struct Bf16 {
    static constexpr const char *name = "bf16", *shape = "m16n8k16", *instruction = "row.col.f32.bf16.bf16.f32";
    static constexpr int registers_a = 4, registers_b = 2, min_capability = 80, bits = 16;
    using Sum = float;
    static uint32_t draw(Random &random, int trial) { return pack_halves(one(random, trial), one(random, trial)); }
    static uint16_t one(Random &random, int trial) {
        static const uint16_t special[8] = {0x7fc0, 0x7f80, 0xff80, 0x0000, 0x8000, 0x0001, 0x807f, 0x3f80};
        if (trial == SPECIAL && random.below(8) == 0)
            return special[random.below(8)];
        return to_bf16(std::ldexp(random.normal(), trial == WIDE_RANGE ? random.below(33) - 16 : 0));
    }
    __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct Fp16 {
    static constexpr const char *name = "fp16", *shape = "m16n8k16", *instruction = "row.col.f32.f16.f16.f32";
    static constexpr int registers_a = 4, registers_b = 2, min_capability = 80, bits = 16;
    using Sum = float;
    static uint32_t draw(Random &random, int trial) { return pack_halves(one(random, trial), one(random, trial)); }
    static uint16_t one(Random &random, int trial) {
        static const uint16_t special[8] = {0x7e00, 0x7c00, 0xfc00, 0x0000, 0x8000, 0x0001, 0x83ff, 0x3c00};
        if (trial == SPECIAL && random.below(8) == 0)
            return special[random.below(8)];
        return to_fp16(std::ldexp(random.normal(), trial == WIDE_RANGE ? random.below(17) - 8 : 0));
    }
    __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct Tf32 { // in fp32 registers, whose low 13 bits are random and should not matter
    static constexpr const char *name = "tf32", *shape = "m16n8k8", *instruction = "row.col.f32.tf32.tf32.f32";
    static constexpr int registers_a = 4, registers_b = 2, min_capability = 80, bits = 32;
    using Sum = float;
    static uint32_t draw(Random &random, int trial) {
        static const uint32_t special[8] = {0x7fc00000, 0x7f800000, 0xff800000, 0,
                                            0x80000000, 1,          0x807fffff, 0x3f800000};
        if (trial == SPECIAL && random.below(8) == 0)
            return special[random.below(8)];
        return bits_of(std::ldexp(random.normal(), trial == WIDE_RANGE ? random.below(33) - 16 : 0));
    }
    __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct Int8 {
    static constexpr const char *name = "s8", *shape = "m16n8k32", *instruction = "row.col.s32.s8.s8.s32";
    static constexpr int registers_a = 4, registers_b = 2, min_capability = 80, bits = 8;
    using Sum = int32_t;
    static uint32_t draw(Random &random, int trial) {
        return trial == SPECIAL ? 0x80808080 : static_cast<uint32_t>(random.bits());
    }
    __device__ static void multiply(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct E4m3 {
    static constexpr const char *name = "e4m3", *shape = "m16n8k32", *instruction = "row.col.f32.e4m3.e4m3.f32";
    static constexpr int registers_a = 4, registers_b = 2, min_capability = 89, bits = 8;
    using Sum = float;
    static uint32_t draw(Random &random, int trial) {
        uint32_t four = 0;
        for (int i = 0; i < 4; ++i)
            four = four << 8 | one(random, trial);
        return four;
    }
    static uint8_t one(Random &random, int trial) {
        static const uint8_t special[8] = {0x7f, 0xff, 0x7e, 0x00, 0x80, 0x01, 0x87, 0x38};
        if (trial == SPECIAL && random.below(8) == 0)
            return special[random.below(8)];
        return to_e4m3(std::ldexp(random.normal(), trial == WIDE_RANGE ? random.below(9) - 4 : 0));
    }
    __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 890
        asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
};

// One warp per trial. a: [TRIALS, 32, 4], b: [TRIALS, 32, 2], c and d: [TRIALS, 32, 4], registers per lane.
template <class Mma>
__global__ void multiply(const uint32_t *a, const uint32_t *b, const typename Mma::Sum *c, typename Mma::Sum *d) {
    const int at = blockIdx.x * 32 + threadIdx.x;
    uint32_t left[4], right[2];
    typename Mma::Sum sum[4];
    for (int i = 0; i < 4; ++i) {
        left[i] = a[at * 4 + i];
        sum[i] = c[at * 4 + i];
    }
    for (int i = 0; i < 2; ++i)
        right[i] = b[at * 2 + i];
    Mma::multiply(sum, left, right);
    for (int i = 0; i < 4; ++i)
        d[at * 4 + i] = sum[i];
}

template <class Mma> void record_mma_of(Vectors &to, int capability) {
    using Sum = typename Mma::Sum;
    const std::string name = std::string("mma ") + Mma::name;
    if (capability < Mma::min_capability) {
        to.absent(name, "needs compute capability " + std::to_string(Mma::min_capability));
        return;
    }
    std::vector<uint32_t> a(TRIALS * 32 * 4), b(TRIALS * 32 * 2);
    std::vector<Sum> c(TRIALS * 32 * 4);
    for (int trial = 0; trial < TRIALS; ++trial)
        for (int lane = 0; lane < 32; ++lane) {
            const int at = trial * 32 + lane;
            for (int i = 0; i < 4; ++i)
                a[at * 4 + i] = Mma::draw(to.random, trial);
            for (int i = 0; i < 2; ++i)
                b[at * 2 + i] = Mma::draw(to.random, trial);
            for (int i = 0; i < 4; ++i)
                c[at * 4 + i] = trial == FROM_ZERO ? Sum(0) : Sum(16.0f * to.random.normal());
        }
    if (Mma::bits != 32) // the right half of K repeats the left one, with negated factors
        for (int lane = 0; lane < 32; ++lane) {
            const int at = CANCELLING * 32 + lane;
            const uint32_t signs = Mma::bits == 16 ? 0x80008000 : std::is_same<Sum, float>::value ? 0x80808080 : 0;
            a[at * 4 + 2] = a[at * 4 + 0];
            a[at * 4 + 3] = a[at * 4 + 1];
            b[at * 2 + 1] = b[at * 2] ^ signs;
        }
    OnDevice<Sum> d(c.size());
    multiply<Mma><<<TRIALS, 32>>>(OnDevice<uint32_t>(a), OnDevice<uint32_t>(b), OnDevice<Sum>(c), d);
    to.begin(name, "mma", std::string("mma.sync.aligned.") + Mma::shape + "." + Mma::instruction);
    to.option("bits", Mma::bits);
    to.option("special", SPECIAL);
    to.array("a", {TRIALS, 32, 4}, a);
    to.array("b", {TRIALS, 32, 2}, b);
    to.array("c", {TRIALS, 32, 4}, c);
    to.array("d", {TRIALS, 32, 4}, d.values());
}

inline void record_mma(Vectors &to, int capability) {
    record_mma_of<Bf16>(to, capability);
    record_mma_of<Fp16>(to, capability);
    record_mma_of<Tf32>(to, capability);
    record_mma_of<Int8>(to, capability);
    record_mma_of<E4m3>(to, capability);
}

} // namespace conformance
