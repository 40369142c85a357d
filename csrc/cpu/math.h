// Vectorised exponential, error function and activations.
#pragma once

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// e^r for r between −ln 2 / 2 and ln 2 / 2
inline V vexp_small(V r) {
    V p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    return add(fma(p, mul(r, r), r), set1(1.0f));
}

// e^r · 2^n = e^x for x between −87.33 and 88.72, as (e^r, n), where x = n·ln 2 + r.
inline V vexp_parts(V x, V &n) {
    n = vround(mul(x, set1(1.44269504f)));
    // ln 2 in two parts, the first exact in few bits, so that x − n·ln 2 loses no bits of x
    V r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    return vexp_small(r);
}

// e^x within 1 ulp for x up to 88.72, infinite above; clamped to about the smallest normal number below −87.33. NaN
// stays NaN.
inline V vexp(V x) {
    const V low = set1(-87.33654f), high = set1(88.72283f);
    V n;
    V p = vexp_parts(vmin(high, vmax(low, x)), n); // this operand order propagates NaN
    // 2^128 overflows fp32, two factors of half the exponent do not
    const V half = vround(mul(n, set1(0.5f)));
    p = mul(mul(p, exp2_int(half)), exp2_int(sub(n, half)));
    return where_gt(x, high, set1(__builtin_inff()), p);
}

// The same where only results up to e^87 matter: it is clamped there, so that its reciprocal is never subnormal, which
// costs a processor a hundred cycles.
inline V vexp_bounded(V x) {
    V n;
    const V p = vexp_parts(vmin(set1(87.0f), vmax(set1(-87.33654f), x)), n);
    return mul(p, exp2_int(n));
}

// e^x for a logit minus the row max, so x ≤ 0: relative error within 1 ulp plus 3e-9·|x| (6e-8·|x| where multiply-adds
// are not fused), which is half an ulp of the largest weight, 1; 0 below −87, and for NaN.
inline V softmax_exp(V x) {
    const V shift = set1(12583039.0f); // 1.5·2^23 + 127: n + 127 ends up in the lowest bits
    const V shifted = fma(x, set1(1.44269504f), shift), n = sub(shifted, shift);
    const V r = fma(n, set1(-0.693147181f), x);
    return where_gt(x, set1(-87.0f), mul(vexp_small(r), exp2_from_bits(shifted)), set1(0.0f));
}

inline V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), vexp_bounded(sub(set1(0.0f), x)))); }

// erf within 1 ulp: a polynomial in x² below 0.93, 1 − e^polynomial above.
inline V verf(V x) {
    const V magnitude = vabs(x), square = mul(x, x);
    V far = fma(set1(-1.72853470e-5f), magnitude, set1(3.83197126e-4f));
    far = fma(far, square, fma(set1(-3.88396438e-3f), magnitude, set1(2.42546219e-2f)));
    far = fma(far, magnitude, set1(-1.06777877e-1f));
    far = fma(far, magnitude, set1(-6.34846687e-1f));
    far = fma(far, magnitude, set1(-1.28717512e-1f));
    far = fma(far, magnitude, sub(set1(0.0f), magnitude));
    far = vcopysign(sub(set1(1.0f), vexp_bounded(far)), x);
    V near = set1(-5.96761703e-4f);
    near = fma(near, square, set1(4.99119423e-3f));
    near = fma(near, square, set1(-2.67681349e-2f));
    near = fma(near, square, set1(1.12819925e-1f));
    near = fma(near, square, set1(-3.76125336e-1f));
    near = fma(near, square, set1(1.28379166e-1f));
    near = fma(near, x, x);
    return where_gt(magnitude, set1(0.927734375f), far, near);
}

inline V apply_activation(V x, int32_t activation) {
    switch (activation) {
    case KINEMA_GELU:
        return mul(mul(set1(0.5f), x), add(set1(1.0f), verf(mul(x, set1(0.70710678f)))));
    case KINEMA_GELU_TANH:
        // ½(1 + tanh u) = σ(2u)
        return mul(x, sigmoid(mul(set1(1.5957691216f), mul(x, fma(mul(set1(0.044715f), x), x, set1(1.0f))))));
    case KINEMA_QUICK_GELU:
        return mul(x, sigmoid(mul(set1(1.702f), x)));
    case KINEMA_SILU:
        return mul(x, sigmoid(x));
    default:
        return x;
    }
}

template <class F> inline void elementwise(int64_t count, const float *x, float *y, F f) {
    int64_t i = 0;
    for (; i + W <= count; i += W)
        store(y + i, f(load(x + i)));
    if (i < count)
        store_n(y + i, f(load_n(x + i, static_cast<int>(count - i))), static_cast<int>(count - i));
}

// One loop per activation, so that its constants stay in registers.
inline void activate(int32_t activation, int64_t count, const float *x, float *y) {
    switch (activation) {
    case KINEMA_GELU:
        return elementwise(count, x, y, [](V v) { return apply_activation(v, KINEMA_GELU); });
    case KINEMA_GELU_TANH:
        return elementwise(count, x, y, [](V v) { return apply_activation(v, KINEMA_GELU_TANH); });
    case KINEMA_QUICK_GELU:
        return elementwise(count, x, y, [](V v) { return apply_activation(v, KINEMA_QUICK_GELU); });
    case KINEMA_SILU:
        return elementwise(count, x, y, [](V v) { return apply_activation(v, KINEMA_SILU); });
    default:
        return elementwise(count, x, y, [](V v) { return v; });
    }
}

inline void exponential(int64_t count, const float *x, float *y) {
    elementwise(count, x, y, [](V v) { return vexp(v); });
}

} // namespace KINEMA_ISA
} // namespace kinema
