// The int8 product without VNNI: columns in groups of 8, with four consecutive features of each column adjacent.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace kinema {
namespace KINEMA_ISA {

constexpr int I8_LANES = 8; // columns per vector of sums
constexpr int I8_ROWS = 6;  // as in fp32
// The highest code of the left matrix. maddubs adds two products of a code and a weight in 16 bits, with saturation:
// 2·127·128 fits, 2·255·127 does not.
constexpr int CODE_MAX = 127;

typedef __m256i I8Sum;
inline I8Sum i8_load(const int32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline void i8_store(int32_t *p, I8Sum s) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), s); }
inline I8Sum i8_zero() { return _mm256_setzero_si256(); }
typedef __m256i I8Codes; // four consecutive codes of a row, broadcast to every column
inline I8Codes i8_broadcast(const uint8_t *a) {
    int32_t codes;
    std::memcpy(&codes, a, sizeof codes);
    return _mm256_set1_epi32(codes);
}
inline void i8_dot(I8Sum &s, I8Codes codes, const int8_t *b) {
    const __m256i columns = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b));
    const __m256i pairs = _mm256_maddubs_epi16(codes, columns);
    s = _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

} // namespace KINEMA_ISA
} // namespace kinema
