"""Numbers inside Triton kernels: fp32 in registers, narrower only in memory and in tensor cores.

Triton's interpreter adds and multiplies bf16 as bit patterns, truncates where it should round, and drops carries into
e4m3 (tests/triton/test_interpreter_canaries.py). So kernels convert what they load to fp32, and cast and multiply
through the helpers here, which are right both compiled and interpreted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kinema.ops.common.triton_target import interpreted

INTERPRETED = tl.constexpr(interpreted())
LOG2_E = tl.constexpr(1.4426950408889634)
# adding and subtracting 1.5·2^23 rounds a float of at most 2^22 to an integer, to nearest even
ROUNDER = tl.constexpr(12582912.0)
# the fewest channels that an fp32 product takes: Triton 3.6 refuses fewer than a tensor core would take
FEWEST_FP32 = 8 if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9) else 16


@triton.jit
def fp32(x):
    """x in fp32."""
    return x.to(tl.float32)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """fp32 → dtype, to nearest even; e4m3 and int8 saturate, as `quantize` wants."""
    if dtype == tl.int8:
        return (tl.minimum(tl.maximum(x, -127.0), 127.0) + ROUNDER - ROUNDER).to(tl.int8)
    elif dtype == tl.float8e4nv:
        if INTERPRETED:
            return _to_e4m3(x)
        else:
            # a GPU's minimum drops NaN unless it is told to keep it
            kept = tl.maximum(x, -448.0, propagate_nan=tl.PropagateNan.ALL)
            return tl.minimum(kept, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)
    elif dtype == tl.bfloat16 and INTERPRETED:
        return _to_bf16(x)
    else:
        return x.to(dtype)


@triton.jit
def rounded(x, dtype: tl.constexpr, CUDA: tl.constexpr):
    """(x in dtype, the same back in fp32). x: fp32. CUDA: not an AMD GPU.

    Converting to bf16 and back value by value costs as much as an exponential: so it is done in pairs.
    """
    if dtype == tl.bfloat16 and CUDA and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;",
            "=&r,=r,=r,f,f",
            [x],
            dtype=(tl.bfloat16, tl.float32),
            is_pure=True,
            pack=2,
        )
    else:
        narrowed = cast(x, dtype)
        return narrowed, fp32(narrowed)


@triton.jit
def dot(a, b, acc):
    """acc + a·b, accumulated in fp32; fp32 factors are multiplied as fp32, never as tf32.

    a: [M, K]; b: [K, N], of one dtype; acc: [M, N] fp32. e4m3 has its own: see `dot_fp8`.
    """
    tl.static_assert(b.dtype != tl.float8e4nv)
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_int8(a, b, acc):
    """acc + a·b of int8, exact: int32 holds the sums of 133,000 products. acc: [M, N] int32."""
    return tl.dot(a, b, acc, out_dtype=tl.int32)


@triton.jit
def dot_fp8(a, b, acc, PROMOTE: tl.constexpr):
    """acc + a·b of e4m3. acc: [M, N] fp32.

    The tensor cores of Ada and Hopper add e4m3 products with fewer than 24 bits: with PROMOTE they sum the K products
    of one call only, and acc is added in fp32. Others sum in fp32 anyway.
    """
    tl.static_assert(b.dtype == tl.float8e4nv)
    if INTERPRETED:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    elif PROMOTE:
        # the limit has no effect on a sum that begins at zero, but without it Triton folds the addition into the dot
        return acc + tl.dot(a, b, max_num_imprecise_acc=a.shape[1])
    else:
        return tl.dot(a, b, acc)


@triton.jit
def fp32_from_e4m3(code):
    """The fp32 value of e4m3 bits in uint8, exactly: also where the hardware does not know the format."""
    # sign, exponent and mantissa in the places of fp16, whose exponent is biased by 8 more
    bits = ((code & 0x80).to(tl.uint16) << 8) | ((code & 0x7F).to(tl.uint16) << 7)
    x = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((code & 0x7F) == 0x7F, float("nan"), x)


@triton.jit
def sigmoid(x):
    """1/(1 + e^−x), on the exponential unit."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def activate(x, activation: tl.constexpr):
    """The activations of `linear` and `conv3d`. x: fp32."""
    if activation == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif activation == "gelu_tanh":
        # ½(1 + tanh u) = σ(2u)
        return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif activation == "quick_gelu":
        return x * sigmoid(1.702 * x)
    elif activation == "silu":
        return x * sigmoid(x)
    else:
        tl.static_assert(activation == "none")
        return x


@triton.jit
def _to_bf16(x):
    bits = x.to(tl.uint32, bitcast=True)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    kept = tl.where(x != x, 0x7FC0, kept)
    return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _to_e4m3(x):
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.uint32, bitcast=True)
    # exponent and three bits of mantissa, moved from fp32's bias to e4m3's; below 2^-6 steps of 2^-9
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = (size * 512.0 + ROUNDER - ROUNDER).to(tl.uint32)
    code = tl.where(size < 0.015625, small, normal)
    code = tl.where(x != x, 0x7F, code)
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
