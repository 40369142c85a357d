"""Bit-exact narrow number formats in NumPy, as the PTX manual defines their conversions."""

from __future__ import annotations

import numpy as np

from kinema.bench.gpu_session.vectors import Array

NAN_BF16 = NAN_FP16 = 0x7FFF  # what every NaN becomes
NAN_E4M3, TOP_E4M3 = 0x7F, 0x7E


def fp32_bits(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def to_bf16(x: Array, *, to_zero: bool = False) -> Array:
    """fp32 → bits of bf16 in uint32, rounded to nearest even or truncated."""
    bits = fp32_bits(x).astype(np.uint64)
    rounded = bits if to_zero else bits + 0x7FFF + (bits >> 16 & 1)
    return np.where(np.isnan(x), NAN_BF16, rounded >> 16).astype(np.uint32)


def to_fp16(x: Array, *, to_zero: bool = False) -> Array:
    """fp32 → bits of fp16 in uint32; rounded to nearest, an overflow becomes infinite, truncated it does not."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = x.astype(np.float16)
    bits = y.view(np.uint16).astype(np.uint32)
    if to_zero:  # one less where it was rounded up
        with np.errstate(invalid="ignore"):
            bits = bits - (np.abs(y.astype(np.float64)) > np.abs(x.astype(np.float64)))
    return np.where(np.isnan(x), NAN_FP16, bits).astype(np.uint32)


def to_e4m3(x: Array) -> Array:
    """fp32 → bits of e4m3 in uint32, to nearest even; overflows and infinities become the largest number."""
    codes = np.arange(TOP_E4M3 + 1)
    values = from_e4m3(codes)
    size = np.abs(x.astype(np.float64))
    upper = np.clip(np.searchsorted(values, np.nan_to_num(size, nan=0.0)), 1, TOP_E4M3)
    lower = upper - 1
    middle = (values[lower] + values[upper]) / 2
    even = np.where(lower % 2 == 0, lower, upper)
    code = np.where(size < middle, lower, np.where(size > middle, upper, even))
    sign = fp32_bits(x) >> 24 & 0x80
    return np.where(np.isnan(x), NAN_E4M3, code | sign).astype(np.uint32)


def to_int8(x: Array) -> Array:
    """fp32 → int32 of −128 to 127, to nearest even; NaN becomes 0."""
    return np.clip(np.rint(np.nan_to_num(x.astype(np.float64), nan=0.0)), -128, 127).astype(np.int32)


def from_bf16(bits: Array) -> Array:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def from_fp16(bits: Array) -> Array:
    return bits.astype(np.uint16).view(np.float16).astype(np.float64)


def from_tf32(bits: Array) -> Array:
    """fp32 without its last 13 bits."""
    with np.errstate(invalid="ignore"):
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def from_e4m3(bits: Array) -> Array:
    """Bits → float64: exponent biased by 7, three bits of mantissa, no infinities."""
    code = bits.astype(np.int64) & 0x7F
    exponent, mantissa = code >> 3, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size = np.where(code == NAN_E4M3, np.nan, size)
    return np.where(bits.astype(np.int64) & 0x80, -size, size)
