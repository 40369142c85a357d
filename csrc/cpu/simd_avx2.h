// fp32 vectors for AVX2 with FMA and F16C.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace kinema {
namespace KINEMA_ISA {

typedef __m256 V;
constexpr int W = 8;
constexpr int MR = 6;             // 12 accumulators, 2 columns of the weight, 1 broadcast: 15 of the 16 registers
constexpr int64_t BF16_GROUP = 1; // consecutive depth values that are adjacent in a bf16 panel

inline V load(const float *p) { return _mm256_loadu_ps(p); }
inline void store(float *p, V v) { _mm256_storeu_ps(p, v); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline __m256i lane_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline V load_n(const float *p, int n) { return _mm256_maskload_ps(p, lane_mask(n)); }
inline void store_n(float *p, V v, int n) { _mm256_maskstore_ps(p, lane_mask(n), v); }
inline void stream(float *p, V v) { _mm256_stream_ps(p, v); } // aligned; bypasses the caches
inline void stream_fence() { _mm_sfence(); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V vmax(V a, V b) { return _mm256_max_ps(a, b); }
inline V vmin(V a, V b) { return _mm256_min_ps(a, b); }
inline V vsqrt(V a) { return _mm256_sqrt_ps(a); }
inline V where_gt(V a, V b, V yes, V no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline V vabs(V a) { return _mm256_andnot_ps(set1(-0.0f), a); }
inline V vcopysign(V magnitude, V sign) {
    const V bit = set1(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
inline V vround(V x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V exp2_int(V n) {
    const __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(i, 23));
}
// 2^(n − 127) for an x whose lowest bits hold n, 1 to 254
inline V exp2_from_bits(V x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23)); }
inline V load_i32(const int32_t *p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline float reduce_add(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// lane i: the sum of v[i]
inline V reduce_add_each(const V *v) {
    const V low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const V high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
inline float reduce_max(V v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline V load_bf16(const uint16_t *p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline V load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
inline V load_e4m3(const uint8_t *p) {
    // sign, exponent and mantissa moved to their fp16 positions; fp16's bias is larger by 8; NaN has a single code
    const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    const __m128i magnitude = _mm_and_si128(code, _mm_set1_epi16(0x7f));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(code, _mm_set1_epi16(0x80)), 8);
    const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
    const __m128i half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
    return _mm256_mul_ps(_mm256_cvtph_ps(half), set1(256.0f));
}
inline V load_i8(const int8_t *p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

// ---- int8

} // namespace KINEMA_ISA
} // namespace kinema

#include "i8_maddubs.h"

namespace kinema {
namespace KINEMA_ISA {

// Rounds v, of values 0 to 255, to bytes.
inline void store_codes(uint8_t *to, V v) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packus_epi16(words, words));
}
// sums − zero_point · columns
inline V load_minus_zero_point(const int32_t *sums, const int32_t *columns, int32_t zero_point) {
    const __m256i product = _mm256_mullo_epi32(i8_load(columns), _mm256_set1_epi32(zero_point));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(i8_load(sums), product));
}

} // namespace KINEMA_ISA
} // namespace kinema
