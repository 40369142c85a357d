// fp32 vectors for any processor: four floats, which compilers map to SSE2 or NEON where available.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kinema {
namespace KINEMA_ISA {

typedef float V __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));
constexpr int W = 4;
constexpr int MR = 6;             // rows of the micro-kernel's tile, which is 2·W wide
constexpr int64_t BF16_GROUP = 1; // consecutive depth values that are adjacent in a bf16 panel

inline V load(const float *p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float *p, V v) { std::memcpy(p, &v, sizeof v); }
inline V set1(float x) { return V{x, x, x, x}; }
inline V load_n(const float *p, int n) {
    V v = set1(0.0f);
    for (int i = 0; i < n; ++i)
        v[i] = p[i];
    return v;
}
inline void store_n(float *p, V v, int n) {
    for (int i = 0; i < n; ++i)
        p[i] = v[i];
}
inline void stream(float *p, V v) { store(p, v); }
inline void stream_fence() {}
inline V fma(V a, V b, V c) { return a * b + c; }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
inline V select(VI mask, V yes, V no) { return (V)((mask & (VI)yes) | (~mask & (VI)no)); }
// the second operand if either is NaN, as on x86
inline V vmax(V a, V b) { return select(a > b, a, b); }
inline V vmin(V a, V b) { return select(a < b, a, b); }
inline V vsqrt(V a) { return V{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])}; }
inline V where_gt(V a, V b, V yes, V no) { return select(a > b, yes, no); }
inline V vabs(V a) { return (V)((VI)a & 0x7fffffff); }
inline V vcopysign(V magnitude, V sign) { return (V)(((VI)magnitude & 0x7fffffff) | ((VI)sign & (VI)set1(-0.0f))); }
// to nearest even; |x| below 2^22
inline V vround(V x) {
    const V big = set1(12582912.0f);
    volatile V sum = x + big; // or a compiler that reassociates would drop both operations
    return sum - big;
}
// 2^n for an integral n between −126 and 127
inline V exp2_int(V n) {
    VI i = {
        static_cast<int32_t>(n[0]), static_cast<int32_t>(n[1]), static_cast<int32_t>(n[2]), static_cast<int32_t>(n[3])};
    return (V)((i + 127) << 23);
}
// 2^(n − 127) for an x whose lowest bits hold n, 1 to 254
inline V exp2_from_bits(V x) {
    typedef uint32_t Bits __attribute__((vector_size(16)));
    return (V)((Bits)x << 23);
}
inline V load_i32(const int32_t *p) {
    return V{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
inline float reduce_add(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline V reduce_add_each(const V *v) {
    return V{reduce_add(v[0]), reduce_add(v[1]), reduce_add(v[2]), reduce_add(v[3])};
} // lane i: of v[i]
inline float reduce_max(V v) {
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline V load_bf16(const uint16_t *p) {
    V v;
    for (int i = 0; i < W; ++i)
        v[i] = from_bits(static_cast<uint32_t>(p[i]) << 16);
    return v;
}

inline float half_to_float(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u)
        return from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    if (magnitude >= 0x400u)
        return from_bits(sign | ((magnitude << 13) + (112u << 23)));
    const float small = static_cast<float>(magnitude) * 5.9604644775390625e-8f; // multiples of 2^-24
    return sign ? -small : small;
}

inline V load_f16(const uint16_t *p) {
    V v;
    for (int i = 0; i < W; ++i)
        v[i] = half_to_float(p[i]);
    return v;
}

inline float e4m3_to_float(uint8_t code) {
    const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
    if (magnitude == 0x7f)
        return from_bits(sign | 0x7fc00000u);
    if (magnitude >= 8)
        return from_bits(sign | ((magnitude << 20) + (120u << 23)));
    const float small = static_cast<float>(magnitude) * 0.001953125f; // multiples of 2^-9
    return sign ? -small : small;
}

inline V load_e4m3(const uint8_t *p) {
    V v;
    for (int i = 0; i < W; ++i)
        v[i] = e4m3_to_float(p[i]);
    return v;
}

inline V load_i8(const int8_t *p) {
    V v;
    for (int i = 0; i < W; ++i)
        v[i] = static_cast<float>(p[i]);
    return v;
}

// ---- int8: columns in groups of 8, with four consecutive features of each column adjacent

constexpr int I8_LANES = 8; // columns per vector of sums
constexpr int I8_ROWS = 2;
constexpr int CODE_MAX = 255;

struct I8Sum {
    int32_t lane[8];
};
inline I8Sum i8_load(const int32_t *p) {
    I8Sum s;
    std::memcpy(&s, p, sizeof s);
    return s;
}
inline void i8_store(int32_t *p, const I8Sum &s) { std::memcpy(p, &s, sizeof s); }
inline I8Sum i8_zero() { return I8Sum{}; }
typedef const uint8_t *I8Codes;
inline I8Codes i8_broadcast(const uint8_t *a) { return a; }
inline void i8_dot(I8Sum &s, I8Codes codes, const int8_t *b) {
    for (int c = 0; c < 8; ++c)
        for (int k = 0; k < 4; ++k)
            s.lane[c] += static_cast<int32_t>(codes[k]) * b[4 * c + k];
}
inline void store_codes(uint8_t *to, V v) {
    for (int i = 0; i < W; ++i)
        to[i] = static_cast<uint8_t>(std::nearbyintf(v[i]));
}
inline V load_minus_zero_point(const int32_t *sums, const int32_t *columns, int32_t zero_point) {
    V v;
    for (int i = 0; i < W; ++i)
        v[i] = static_cast<float>(sums[i] - zero_point * columns[i]);
    return v;
}

} // namespace KINEMA_ISA
} // namespace kinema
