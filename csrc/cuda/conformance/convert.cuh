// Conversions between formats, and the approximate functions: unary instructions.
#pragma once

#include "vectors.h"

namespace conformance {

struct ToBf16 {
    static constexpr const char *name = "cvt.rn.bf16.f32";
    static constexpr int min_capability = 80;
    __device__ static uint32_t of(float x) {
        uint16_t y;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
};
struct ToBf16Zero {
    static constexpr const char *name = "cvt.rz.bf16.f32";
    static constexpr int min_capability = 80;
    __device__ static uint32_t of(float x) {
        uint16_t y;
        asm("cvt.rz.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
};
struct ToBf16Pair { // the first operand goes into the upper half
    static constexpr const char *name = "cvt.rn.bf16x2.f32";
    static constexpr int min_capability = 80;
    __device__ static uint32_t of(float x) {
        uint32_t y;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(x), "f"(-x));
        return y;
    }
};
struct ToFp16 {
    static constexpr const char *name = "cvt.rn.f16.f32";
    static constexpr int min_capability = 80;
    __device__ static uint32_t of(float x) {
        uint16_t y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
};
struct ToFp16Zero {
    static constexpr const char *name = "cvt.rz.f16.f32";
    static constexpr int min_capability = 80;
    __device__ static uint32_t of(float x) {
        uint16_t y;
        asm("cvt.rz.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
};
struct ToE4m3Pair {
    static constexpr const char *name = "cvt.rn.satfinite.e4m3x2.f32";
    static constexpr int min_capability = 89;
    __device__ static uint32_t of(float x) {
        uint16_t y = 0;
#if __CUDA_ARCH__ >= 890
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(x), "f"(-x));
#endif
        return y;
    }
};
struct FromE4m3Pair { // of the low 16 bits of x
    static constexpr const char *name = "cvt.rn.f16x2.e4m3x2";
    static constexpr int min_capability = 89;
    __device__ static uint32_t of(float x) {
        uint32_t y = 0;
#if __CUDA_ARCH__ >= 890
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(y) : "h"(static_cast<uint16_t>(__float_as_uint(x))));
#endif
        return y;
    }
};
struct ToInt8 {
    static constexpr const char *name = "cvt.rni.sat.s8.f32";
    static constexpr int min_capability = 80;
    __device__ static uint32_t of(float x) {
        int32_t y;
        asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(y) : "f"(x));
        return static_cast<uint32_t>(y);
    }
};

#define CONFORMANCE_FUNCTION(NAME, TEXT)                                                                               \
    struct NAME {                                                                                                      \
        static constexpr const char *name = TEXT;                                                                      \
        static constexpr int min_capability = 80;                                                                      \
        __device__ static uint32_t of(float x) {                                                                       \
            float y;                                                                                                   \
            asm(TEXT " %0, %1;" : "=f"(y) : "f"(x));                                                                   \
            return __float_as_uint(y);                                                                                 \
        }                                                                                                              \
    };
CONFORMANCE_FUNCTION(Exp2Flushed, "ex2.approx.ftz.f32")
CONFORMANCE_FUNCTION(Exp2, "ex2.approx.f32")
CONFORMANCE_FUNCTION(Log2, "lg2.approx.ftz.f32")
CONFORMANCE_FUNCTION(Reciprocal, "rcp.approx.ftz.f32")
CONFORMANCE_FUNCTION(ReciprocalRoot, "rsqrt.approx.ftz.f32")
CONFORMANCE_FUNCTION(Tanh, "tanh.approx.f32")

template <class Conversion> __global__ void convert(const float *x, uint32_t *y, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        y[i] = Conversion::of(x[i]);
}

template <class Conversion> void record_conversion(Vectors &to, int capability, const std::vector<float> &x) {
    if (capability < Conversion::min_capability) {
        to.absent(Conversion::name, "needs compute capability " + std::to_string(Conversion::min_capability));
        return;
    }
    const int count = static_cast<int>(x.size());
    const OnDevice<uint32_t> y(x.size());
    convert<Conversion><<<(count + 127) / 128, 128>>>(OnDevice<float>(x), y, count);
    to.begin(Conversion::name, "convert", Conversion::name);
    to.array("x", {count}, x);
    to.array("y", {count}, y.values());
}

// Special values, format limits and rounding ties with their neighbours; then arbitrary bits.
inline std::vector<float> values_to_convert(Random &random) {
    std::vector<uint32_t> bits;
    auto add = [&](uint32_t kept) {
        for (uint32_t sign : {0u, 0x80000000u})
            bits.push_back(kept | sign);
    };
    for (uint32_t kept :
         {0u, 1u, 0x007fffffu, 0x00800000u, 0x7f7fffffu, 0x7f800000u, 0x7f800001u, 0x7fc00000u, 0x7fffffffu})
        add(kept);
    // near the largest and smallest numbers of bf16, fp16, e4m3 and int8, and half of the smallest
    for (float edge :
         {3.3895314e38f, 65504.0f, 65520.0f, 448.0f,   464.0f,   480.0f,  126.5f,   127.0f,  127.5f,    128.0f,
          0.5f,          1.5f,     0x1p-24f, 0x1p-25f, 0x1p-14f, 0x1p-9f, 0x1p-10f, 0x1p-6f, 0x1p-133f, 0x1p-134f})
        for (int off = -1; off <= 1; ++off)
            add(bits_of(edge) + static_cast<uint32_t>(off));
    for (int dropped_bits : {13, 16, 20}) // bits dropped by fp16, bf16 and e4m3: ties, and their neighbours
        for (int i = 0; i < 32; ++i) {
            const uint32_t tie =
                (bits_of(random.normal()) >> dropped_bits << dropped_bits | 1u << (dropped_bits - 1)) & 0x7fffffff;
            for (int off = -1; off <= 1; ++off)
                add(tie + static_cast<uint32_t>(off));
        }
    for (int i = 0; i < 256; ++i)
        bits.push_back(bits_of(16.0f * random.normal()));
    for (int i = 0; i < 256; ++i)
        bits.push_back(static_cast<uint32_t>(random.bits()));
    std::vector<float> values(bits.size());
    std::memcpy(values.data(), bits.data(), bits.size() * sizeof(float));
    return values;
}

inline void record_conversions(Vectors &to, int capability) {
    const std::vector<float> x = values_to_convert(to.random);
    std::vector<uint32_t> every(1 << 8);
    for (uint32_t i = 0; i < every.size(); ++i)
        every[i] = i | (every.size() - 1 - i) << 8;
    std::vector<float> codes(every.size());
    std::memcpy(codes.data(), every.data(), every.size() * sizeof(float));
    record_conversion<ToBf16>(to, capability, x);
    record_conversion<ToBf16Zero>(to, capability, x);
    record_conversion<ToBf16Pair>(to, capability, x);
    record_conversion<ToFp16>(to, capability, x);
    record_conversion<ToFp16Zero>(to, capability, x);
    record_conversion<ToE4m3Pair>(to, capability, x);
    record_conversion<FromE4m3Pair>(to, capability, codes);
    record_conversion<ToInt8>(to, capability, x);
    record_conversion<Exp2Flushed>(to, capability, x);
    record_conversion<Exp2>(to, capability, x);
    record_conversion<Log2>(to, capability, x);
    record_conversion<Reciprocal>(to, capability, x);
    record_conversion<ReciprocalRoot>(to, capability, x);
    record_conversion<Tanh>(to, capability, x);
}

} // namespace conformance
