// wgmma: operands in swizzled shared memory by descriptor, or in registers, and how a chain of products is summed.
#pragma once

#include "mma.cuh"

namespace conformance {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CONFORMANCE_SM90A
#endif

#define CONFORMANCE_D8(i)                                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define CONFORMANCE_D32 CONFORMANCE_D8(0), CONFORMANCE_D8(8), CONFORMANCE_D8(16), CONFORMANCE_D8(24)
#define CONFORMANCE_D64 CONFORMANCE_D32, CONFORMANCE_D8(32), CONFORMANCE_D8(40), CONFORMANCE_D8(48), CONFORMANCE_D8(56)
#define CONFORMANCE_0_31                                                                                               \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"   \
    "%30,%31"
#define CONFORMANCE_0_63                                                                                               \
    CONFORMANCE_0_31 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,"   \
                     "%55,%56,%57,%58,%59,%60,%61,%62,%63"

// D (64 × 64 or 64 × 128, fp32) = A·B + D, or A·B without `add`. a, b: descriptors, or A's registers. TA, TB: 1 if that
// operand is MN-major, so that its tile has rows of K; 8-bit operands never are.
template <int TA, int TB> struct SharedBf16 {
    static constexpr bool registers = false, a_rows_of_k = TA, b_rows_of_k = TB;
    static constexpr int bits = 16;
    __device__ static void multiply(float (&d)[32], const uint32_t (&)[4], uint64_t a, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" CONFORMANCE_0_31
                     "}, %32, %33, p, 1, 1, %35, %36;\n}"
                     : CONFORMANCE_D32
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
#endif
    }
    __device__ static void multiply(float (&d)[64], const uint32_t (&)[4], uint64_t a, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" CONFORMANCE_0_63
                     "}, %64, %65, p, 1, 1, %67, %68;\n}"
                     : CONFORMANCE_D64
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
#endif
    }
};

template <int TB> struct RegistersBf16 {
    static constexpr bool registers = true, a_rows_of_k = false, b_rows_of_k = TB;
    static constexpr int bits = 16;
    __device__ static void multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" CONFORMANCE_0_31
                     "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
                     : CONFORMANCE_D32
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));
#endif
    }
    __device__ static void multiply(float (&d)[64], const uint32_t (&a)[4], uint64_t, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" CONFORMANCE_0_63
                     "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}"
                     : CONFORMANCE_D64
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));
#endif
    }
};

struct SharedE4m3 {
    static constexpr bool registers = false, a_rows_of_k = false, b_rows_of_k = false;
    static constexpr int bits = 8;
    __device__ static void multiply(float (&d)[32], const uint32_t (&)[4], uint64_t a, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" CONFORMANCE_0_31
                     "}, %32, %33, p, 1, 1;\n}"
                     : CONFORMANCE_D32
                     : "l"(a), "l"(b), "r"(add));
#endif
    }
    __device__ static void multiply(float (&d)[64], const uint32_t (&)[4], uint64_t a, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" CONFORMANCE_0_63
                     "}, %64, %65, p, 1, 1;\n}"
                     : CONFORMANCE_D64
                     : "l"(a), "l"(b), "r"(add));
#endif
    }
};

struct RegistersE4m3 {
    static constexpr bool registers = true, a_rows_of_k = false, b_rows_of_k = false;
    static constexpr int bits = 8;
    __device__ static void multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t, uint64_t b, int add) {
#ifdef CONFORMANCE_SM90A
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" CONFORMANCE_0_31
                     "}, {%32,%33,%34,%35}, %36, p, 1, 1;\n}"
                     : CONFORMANCE_D32
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#endif
    }
};

// An operand in shared memory. extent: of M or N. K-major: rows along K, as long as the swizzle in bytes; the next
// product of a chain starts 32 bytes further. MN-major: rows along M or N, as long as the swizzle; the next product
// starts 16 rows further, and wider tiles are split into consecutive panels. A group is eight rows.
struct Tile {
    int extent, products, swizzle;
    bool rows_of_k;

    int panel() const { return (rows_of_k ? products * 16 : extent) * swizzle; }
    int bytes() const { return rows_of_k ? panel() * (extent * 2 / swizzle) : panel(); }
    int step() const { return rows_of_k ? 16 * swizzle : 32; }
    // All fields but the address: the strides between panels and between groups, and the swizzle mode.
    uint64_t descriptor() const {
        const uint64_t leading = rows_of_k ? panel() : 16, stride = 8 * swizzle;
        return leading >> 4 << 16 | stride >> 4 << 32 | static_cast<uint64_t>(swizzle == 128 ? 1 : 2) << 62;
    }
};

struct Operands {
    const uint8_t *a, *b;
    const uint32_t *registers; // [products, 128, 4]
    int a_bytes, b_bytes, a_step, b_step;
    uint64_t a_descriptor, b_descriptor;
};

constexpr int MAX_TILE_BYTES = 1 << 14; // of a tile; B follows A

// c, d: [128, COLUMNS / 2], registers per lane. c: null for a chain that starts at zero.
template <class Mma, int COLUMNS, int PRODUCTS>
__global__ void __launch_bounds__(128) multiply_chain(const Operands given, const float *c, float *d) {
#ifdef CONFORMANCE_SM90A
    constexpr int SUMS = COLUMNS / 2;
    extern __shared__ __align__(1024) uint8_t tiles[];
    if (shared_address(tiles) % 1024)
        __trap(); // swizzles depend on the address
    const int lane = threadIdx.x;
    for (int i = lane; i < given.a_bytes; i += 128)
        tiles[i] = given.a[i];
    for (int i = lane; i < given.b_bytes; i += 128)
        tiles[MAX_TILE_BYTES + i] = given.b[i];
    uint32_t left[PRODUCTS][4] = {};
    if constexpr (Mma::registers)
        for (int p = 0; p < PRODUCTS; ++p)
            for (int i = 0; i < 4; ++i)
                left[p][i] = given.registers[(p * 128 + lane) * 4 + i];
    float sum[SUMS];
    for (int i = 0; i < SUMS; ++i)
        sum[i] = c ? c[lane * SUMS + i] : __int_as_float(0x7fc00000); // a NaN that must not be read
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");      // makes the generic writes above visible to wgmma
    __syncthreads();
    const uint64_t a = given.a_descriptor | (shared_address(tiles) & 0x3ffff) >> 4;
    const uint64_t b = given.b_descriptor | (shared_address(tiles + MAX_TILE_BYTES) & 0x3ffff) >> 4;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int p = 0; p < PRODUCTS; ++p)
        Mma::multiply(sum, left[p], a + (p * given.a_step >> 4), b + (p * given.b_step >> 4), p > 0 || c != nullptr);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < SUMS; ++i)
        d[lane * SUMS + i] = sum[i];
#endif
}

// Contiguous random numbers of the format. wide_range: a wide range of exponents.
inline std::vector<uint8_t> random_numbers(Random &random, int bits, bool wide_range, size_t count) {
    std::vector<uint8_t> bytes(count);
    for (size_t i = 0; i < count; i += bits / 8) {
        if (bits == 8) {
            bytes[i] = to_e4m3(std::ldexp(random.normal(), wide_range ? random.below(9) - 4 : 0));
        } else {
            const uint16_t value = to_bf16(std::ldexp(random.normal(), wide_range ? random.below(33) - 16 : 0));
            std::memcpy(&bytes[i], &value, sizeof value);
        }
    }
    return bytes;
}

struct ChainOptions {
    bool from_zero = true, wide_range = false;
    int swizzle = 128;
};

template <class Mma, int COLUMNS, int PRODUCTS>
void record_chain(Vectors &to, const std::string &name, const ChainOptions &options) {
    const Tile left{64, PRODUCTS, options.swizzle, bool(Mma::a_rows_of_k)};
    const Tile right{COLUMNS, PRODUCTS, options.swizzle, bool(Mma::b_rows_of_k)};
    const size_t a_bytes = Mma::registers ? PRODUCTS * 128 * 16 : left.bytes();
    const std::vector<uint8_t> a = random_numbers(to.random, Mma::bits, options.wide_range, a_bytes);
    const std::vector<uint8_t> b = random_numbers(to.random, Mma::bits, options.wide_range, right.bytes());
    std::vector<uint32_t> registers(a_bytes / 4);
    std::memcpy(registers.data(), a.data(), a_bytes);
    std::vector<float> c(128 * COLUMNS / 2);
    for (float &value : c)
        value = 8.0f * to.random.normal();
    const OnDevice<uint8_t> a_on_device(a), b_on_device(b);
    const OnDevice<uint32_t> registers_on_device(registers);
    const OnDevice<float> start(c), result(c.size());
    const int shared = Mma::registers ? 0 : left.bytes();
    const Operands given{a_on_device,  b_on_device,       registers_on_device, shared, right.bytes(), left.step(),
                         right.step(), left.descriptor(), right.descriptor()};
    const float *from = options.from_zero ? nullptr : static_cast<float *>(start);
    multiply_chain<Mma, COLUMNS, PRODUCTS><<<1, 128, 2 * MAX_TILE_BYTES>>>(given, from, result);
    const std::string shape = "m64n" + std::to_string(COLUMNS) + (Mma::bits == 8 ? "k32" : "k16");
    to.begin(
        "wgmma " + name, "wgmma",
        "wgmma.mma_async.sync.aligned." + shape + (Mma::bits == 8 ? ".f32.e4m3.e4m3" : ".f32.bf16.bf16"));
    to.option("columns", COLUMNS);
    to.option("products", PRODUCTS);
    to.option("swizzle", options.swizzle);
    to.option("a_rows_of_k", Mma::a_rows_of_k);
    to.option("b_rows_of_k", Mma::b_rows_of_k);
    to.option("bits", Mma::bits);
    if (Mma::registers)
        to.array("a_registers", {PRODUCTS, 128, 4}, registers);
    else
        to.array("a", {left.bytes()}, a);
    to.array("b", {right.bytes()}, b);
    if (!options.from_zero)
        to.array("c", {128, COLUMNS / 2}, c);
    to.array("d", {128, COLUMNS / 2}, result.values());
}

inline void record_wgmma(Vectors &to, int capability) {
    if (capability != 90) {
        to.absent("wgmma", "is Hopper's alone");
        return;
    }
    ChainOptions plain, accumulating, wide_range, swizzle_64;
    accumulating.from_zero = false;
    wide_range.wide_range = true;
    swizzle_64.swizzle = 64;
    record_chain<SharedBf16<0, 0>, 64, 4>(to, "bf16 n64", accumulating);
    record_chain<SharedBf16<0, 0>, 64, 1>(to, "bf16 n64, once, far apart", wide_range);
    record_chain<SharedBf16<0, 0>, 64, 2>(to, "bf16 n64, 64-byte swizzle", swizzle_64);
    record_chain<SharedBf16<0, 1>, 64, 4>(to, "bf16 n64, B MN-major", plain);
    record_chain<SharedBf16<1, 0>, 64, 4>(to, "bf16 n64, A MN-major", plain);
    record_chain<SharedBf16<0, 0>, 128, 4>(to, "bf16 n128", plain);
    record_chain<SharedBf16<0, 1>, 128, 4>(to, "bf16 n128, B MN-major", plain);
    record_chain<RegistersBf16<0>, 64, 4>(to, "bf16 n64, A in registers", accumulating);
    record_chain<RegistersBf16<1>, 128, 4>(to, "bf16 n128, A in registers, B MN-major", plain);
    record_chain<SharedE4m3, 64, 4>(to, "e4m3 n64", accumulating);
    record_chain<SharedE4m3, 64, 1>(to, "e4m3 n64, once, far apart", wide_range);
    record_chain<SharedE4m3, 64, 4>(to, "e4m3 n64, far apart", wide_range);
    record_chain<SharedE4m3, 128, 4>(to, "e4m3 n128", plain);
    record_chain<RegistersE4m3, 64, 4>(to, "e4m3 n64, A in registers", plain);
}

} // namespace conformance
