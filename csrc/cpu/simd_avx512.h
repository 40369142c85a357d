// fp32 vectors for AVX-512 (F, BW, DQ, VL). Without VNNI its int8 products are those of AVX2.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace kinema {
namespace KINEMA_ISA {

typedef __m512 V;
constexpr int W = 16;
constexpr int MR = 12; // 24 accumulators, 2 columns of the weight, 1 broadcast: 27 of the 32 registers

inline V load(const float *p) { return _mm512_loadu_ps(p); }
inline void store(float *p, V v) { _mm512_storeu_ps(p, v); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline __mmask16 lane_mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline V load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(lane_mask(n), p); }
inline void store_n(float *p, V v, int n) { _mm512_mask_storeu_ps(p, lane_mask(n), v); }
inline void stream(float *p, V v) { _mm512_stream_ps(p, v); } // aligned; bypasses the caches
inline void stream_fence() { _mm_sfence(); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V vmax(V a, V b) { return _mm512_max_ps(a, b); }
inline V vmin(V a, V b) { return _mm512_min_ps(a, b); }
inline V vsqrt(V a) { return _mm512_sqrt_ps(a); }
inline V where_gt(V a, V b, V yes, V no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes); }
inline V vabs(V a) { return _mm512_abs_ps(a); }
inline V vcopysign(V magnitude, V sign) {
    const V bit = set1(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
}
inline V vround(V x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V exp2_int(V n) {
    const __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
}
// 2^(n − 127) for an x whose lowest bits hold n, 1 to 254
inline V exp2_from_bits(V x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23)); }
inline V load_i32(const int32_t *p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
inline float reduce_add(V v) { return _mm512_reduce_add_ps(v); }
// lane i: the sum of v[i]. Adds halves of two vectors, then quarters of four, and so on.
inline V reduce_add_each(const V *v) {
    V fours[4];
    for (int i = 0; i < 4; ++i) {
        V eights[2];
        for (int j = 0; j < 2; ++j) {
            const V one = v[8 * j + i], other = v[8 * j + i + 4];
            eights[j] = add(_mm512_shuffle_f32x4(one, other, 0x44), _mm512_shuffle_f32x4(one, other, 0xee));
        }
        fours[i] =
            add(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88), _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
    }
    const V low = add(_mm512_unpacklo_ps(fours[0], fours[1]), _mm512_unpackhi_ps(fours[0], fours[1]));
    const V high = add(_mm512_unpacklo_ps(fours[2], fours[3]), _mm512_unpackhi_ps(fours[2], fours[3]));
    return add(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
}
// the first half of v to `low`, the second to `high`
inline void store_halves(float *low, float *high, V v) {
    _mm256_storeu_ps(low, _mm512_castps512_ps256(v));
    _mm256_storeu_ps(high, _mm512_extractf32x8_ps(v, 1));
}
inline float reduce_max(V v) { return _mm512_reduce_max_ps(v); }

inline V load_bf16(const uint16_t *p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline V load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline V load_e4m3(const uint8_t *p) {
    const __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x80)), 8);
    const __m256i nan =
        _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
    const __m256i half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), nan);
    return _mm512_mul_ps(_mm512_cvtph_ps(half), set1(256.0f));
}
inline V load_i8(const int8_t *p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// ---- bf16: dot products of pairs, summed in fp32

#if defined(__AVX512BF16__)
constexpr int64_t BF16_GROUP = 2; // consecutive depth values that are adjacent in a bf16 panel

typedef __m512bh Bf16Pairs; // of W columns, or one broadcast to all
inline Bf16Pairs load_pairs(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }
inline Bf16Pairs broadcast_pair(const uint16_t *p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}
inline V dot_pairs(V sum, Bf16Pairs x, Bf16Pairs y) { return _mm512_dpbf16_ps(sum, x, y); }
// to nearest even; subnormals become 0
inline void store_bf16(uint16_t *to, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(v));
}
// interleaves two rows of W columns whose values are exact in bf16
inline void store_pairs(uint16_t *p, V first, V second) {
    const __m512i high = _mm512_and_si512(_mm512_castps_si512(second), _mm512_set1_epi32(-65536));
    _mm512_storeu_si512(p, _mm512_or_si512(high, _mm512_srli_epi32(_mm512_castps_si512(first), 16)));
}
// the same of any values, to nearest even
inline void round_pairs(uint16_t *p, V first, V second) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
    _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
// 2·W values of a row, rounded; returns them as W pairs
inline Bf16Pairs round_row_pairs(uint16_t *p, V first, V second) {
    const Bf16Pairs pairs = _mm512_cvtne2ps_pbh(second, first);
    _mm512_storeu_si512(p, (__m512i)pairs);
    return pairs;
}
inline Bf16Pairs pairs_of_ones() { return (__m512bh)_mm512_set1_epi32(0x3f803f80); }
// the reverse of store_pairs: two fp32 rows of W columns
inline void unpack_pairs(const uint16_t *p, float *first, float *second) {
    const __m512i pairs = _mm512_loadu_si512(p);
    store(first, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
    store(second, _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))));
}
#else
constexpr int64_t BF16_GROUP = 1;
#endif

// ---- int8, columns in groups of 16 or as in i8_maddubs.h

#if defined(__AVX512VNNI__)
constexpr int I8_LANES = 16;
constexpr int I8_ROWS = 12;
constexpr int CODE_MAX = 255;

typedef __m512i I8Sum;
inline I8Sum i8_load(const int32_t *p) { return _mm512_loadu_si512(p); }
inline void i8_store(int32_t *p, I8Sum s) { _mm512_storeu_si512(p, s); }
inline I8Sum i8_zero() { return _mm512_setzero_si512(); }
typedef __m512i I8Codes;
inline I8Codes i8_broadcast(const uint8_t *a) {
    int32_t codes;
    std::memcpy(&codes, a, sizeof codes);
    return _mm512_set1_epi32(codes);
}
// Products of an unsigned and a signed factor, four per 32-bit sum: nothing saturates.
inline void i8_dot(I8Sum &s, I8Codes codes, const int8_t *b) {
    s = _mm512_dpbusd_epi32(s, codes, _mm512_loadu_si512(b));
}
#else
} // namespace KINEMA_ISA
} // namespace kinema

#include "i8_maddubs.h"

namespace kinema {
namespace KINEMA_ISA {
#endif

inline void store_codes(uint8_t *to, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)));
}
inline V load_minus_zero_point(const int32_t *sums, const int32_t *columns, int32_t zero_point) {
    const __m512i product = _mm512_mullo_epi32(_mm512_loadu_si512(columns), _mm512_set1_epi32(zero_point));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums), product));
}

} // namespace KINEMA_ISA
} // namespace kinema
