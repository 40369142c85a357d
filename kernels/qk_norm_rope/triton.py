"""`qk_norm_rope` in Triton: a program reads all heads of an operand of a few tokens once, and writes them once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kinema.ops.common import Rope, dense, output_buffer
from kinema.ops.common.launch import Config, Layout, Plan, launch, layout, remembered, select_config
from kinema.ops.common.triton_numerics import cast, fp32
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.qk_norm_rope.check import checked

# ELEMENTS: of one tile, a group of heads of a few tokens; a token's heads are a handful of tiles. 1024 in 4 warps are
# one 16-byte load of bf16 per thread, and the loads of all tiles are in flight together.
HEADS = {
    0: Config({"ELEMENTS": 1024}),
    80: Config({"ELEMENTS": 1024}, warps=4, stages=1),
    100: Config({"ELEMENTS": 2048}, warps=8, stages=1),  # the same a thread; 4 warps spill a register there
}
MOST_TILES = 8
MOST_VALUES = 48  # fp32 values of a token's heads that a thread holds


@checked
def qk_norm_rope(
    x: torch.Tensor, heads: int, norm: HeadNorm | None, rope: Rope | None, out: torch.Tensor | None
) -> torch.Tensor:
    batch, tokens, channels = x.shape
    cos, sin = (dense(rope.cos), dense(rope.sin)) if rope is not None else (None, None)
    y = output_buffer(out, (batch, heads, tokens, channels // heads), x.dtype, x.device, contiguous=2)
    operands = norm.operands if norm is not None else 1
    plan = _plan(x.device, heads, operands, layout(x), layout(y), layout(cos), layout(sin))
    launch(
        _qk_norm_rope,
        plan.grid,
        plan.config,
        x=x,
        y=y,
        weight=dense(norm.weight) if norm is not None else None,
        bias=dense(norm.bias) if norm is not None else None,
        cos=cos,
        sin=sin,
        start=rope.start if rope is not None else 0,
        eps=norm.eps if norm is not None else 0.0,
        NORM=norm.kind if norm is not None else "none",
        ACROSS=norm is not None and norm.across_heads,
        # without rotation any pairing will do, and interleaved pairs load contiguously
        INTERLEAVED=rope.interleaved if rope is not None else channels // heads % 2 == 0,
        **plan.arguments,
    )
    return y


@remembered
def _plan(
    device: torch.device, heads: int, operands: int, x: Layout, y: Layout, cos: Layout | None, sin: Layout | None
) -> Plan:
    batch, tokens, channels = x[0]
    head_dim, of_operand = channels // heads, heads // operands
    half = triton.next_power_of_2((head_dim + 1) // 2)
    table = select_config("qk_norm_rope", HEADS, device)
    config = _tiles(of_operand, 2 * half, table.blocks["ELEMENTS"], table.warps)
    cos_b, cos_s = _strides(cos)
    sin_b, sin_s = _strides(sin)
    arguments = {
        "tokens": tokens,
        "rotated": cos[0][-2] if cos is not None else 0,
        "x_b": x[1][0],
        "x_s": x[1][1],
        "y_b": y[1][0],
        "y_n": y[1][1],
        "cos_b": cos_b,
        "cos_s": cos_s,
        "sin_b": sin_b,
        "sin_s": sin_s,
        "OPERANDS": operands,
        "HEADS": of_operand,
        "HEAD_DIM": head_dim,
        "HALF": half,
    }
    return Plan((triton.cdiv(tokens, config.blocks["TOKENS"]), batch, operands), config, arguments)


def _strides(table: Layout | None) -> tuple[int, int]:
    """Of a table [R, D/2] or [B or 1, R, D/2], over samples and tokens."""
    if table is None:
        return 0, 0
    shape, strides = table
    return strides[0] if len(shape) == 3 and shape[0] > 1 else 0, strides[-2]


def _tiles(heads: int, padded: int, elements: int, warps: int) -> Config:
    """A token's heads, `padded` channels each, as tiles of GROUP heads: few tiles, and little of them empty."""
    while heads * padded > MOST_VALUES * 32 * warps and warps < 16:
        warps, elements = 2 * warps, 2 * elements
    groups = [2**i for i in range(heads.bit_length() + 1) if i == 0 or 2**i * padded <= elements]
    groups = [g for g in groups if triton.cdiv(heads, g) <= MOST_TILES] or groups[-1:]
    group = min(groups, key=lambda g: (triton.cdiv(heads, g) * g, -g))
    return Config({"TOKENS": max(1, elements // (group * padded)), "GROUP": group}, warps, stages=1)


@triton.jit(do_not_specialize=["tokens", "start", "rotated"])  # one build for every length
def _qk_norm_rope(
    x,
    y,
    weight,
    bias,
    cos,
    sin,
    tokens,
    start,
    rotated,
    eps,
    x_b,
    x_s,
    y_b,
    y_n,
    cos_b,
    cos_s,
    sin_b,
    sin_s,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    OPERANDS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
):
    b = tl.program_id(1).to(tl.int64)
    s = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    n = tl.arange(0, GROUP)[None, :, None]
    x += b * x_b + s.to(tl.int64) * x_s
    y += b * y_b + s.to(tl.int64) * HEAD_DIM
    if OPERANDS > 1:  # one spares the registers
        operand = tl.program_id(2).to(tl.int64)
        x += operand * (HEADS * HEAD_DIM)
        y += operand * HEADS * y_n
        if weight is not None:
            weight += operand * (HEADS * HEAD_DIM if ACROSS else HEAD_DIM)
        if bias is not None:
            bias += operand * (HEADS * HEAD_DIM if ACROSS else HEAD_DIM)
    # weights and tables are addressed as whole tiles: each thread loads what it needs, with no exchange of layouts
    tile = tl.zeros((TOKENS, GROUP, 1), tl.int32)

    first, second = (), ()
    for i in tl.static_range(0, HEADS, GROUP):
        real = (s < tokens) & (n + i < HEADS)
        h1, h2 = _load(x + (n + i) * HEAD_DIM, real, HEAD_DIM, HALF, INTERLEAVED)
        first, second = first + (h1,), second + (h2,)  # type: ignore[assignment]
    if cos is not None:
        r = s - start
        pair = tl.arange(0, HALF)[None, None, :]
        turned = (r >= 0) & (r < rotated) & (pair < HEAD_DIM // 2)
        at = b * cos_b + r.to(tl.int64) * cos_s + tile
        c1 = fp32(tl.load(cos + at + pair, mask=turned, other=1.0))
        at = b * sin_b + r.to(tl.int64) * sin_s + tile
        s1 = fp32(tl.load(sin + at + pair, mask=turned, other=0.0))
    if ACROSS:
        mean, scale = _moments(first, second, eps, NORM, ACROSS, HEADS, HEAD_DIM)
    else:
        if weight is not None:
            w1, w2 = _load(weight + tile, tile == 0, HEAD_DIM, HALF, INTERLEAVED)
        if bias is not None:
            b1, b2 = _load(bias + tile, tile == 0, HEAD_DIM, HALF, INTERLEAVED)

    for k in tl.static_range(len(first)):
        i = k * GROUP
        h1, h2 = first[k], second[k]
        if NORM != "none":
            if ACROSS:
                if weight is not None:
                    at = weight + (n + i) * HEAD_DIM + tile
                    w1, w2 = _load(at, n + i < HEADS, HEAD_DIM, HALF, INTERLEAVED)
                if bias is not None:
                    at = bias + (n + i) * HEAD_DIM + tile
                    b1, b2 = _load(at, n + i < HEADS, HEAD_DIM, HALF, INTERLEAVED)
            else:
                mean, scale = _moments((h1,), (h2,), eps, NORM, ACROSS, HEADS, HEAD_DIM)
            h1, h2 = (h1 - mean) * scale, (h2 - mean) * scale
            if weight is not None:
                h1, h2 = h1 * w1, h2 * w2
            if bias is not None:
                h1, h2 = h1 + b1, h2 + b2
        if cos is not None:
            h1, h2 = h1 * c1 - h2 * s1, h1 * s1 + h2 * c1
        real = (s < tokens) & (n + i < HEADS)
        _store(y + (n + i).to(tl.int64) * y_n, real, h1, h2, HEAD_DIM, INTERLEAVED)


@triton.jit
def _moments(first, second, eps, NORM: tl.constexpr, ACROSS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Mean (0 if "rms") and 1/deviation of the heads in `first` and `second`: of each, or ACROSS all of a token's."""
    COUNT: tl.constexpr = HEADS * HEAD_DIM if ACROSS else HEAD_DIM
    mean = 0.0
    if NORM == "layer":
        total = first[0] + second[0]
        for k in tl.static_range(1, len(first)):
            total += first[k] + second[k]
        mean = _sum(total, ACROSS) / COUNT
    square = tl.zeros_like(first[0])
    for k in tl.static_range(len(first)):
        h1, h2 = first[k], second[k]
        if NORM == "layer":
            # what is masked must not count in the variance
            n = tl.arange(0, h1.shape[1])[None, :, None] + k * h1.shape[1]
            pair = tl.arange(0, h1.shape[2])[None, None, :]
            inside = (n < HEADS) | (not ACROSS)
            h1 = tl.where(inside & (pair < (HEAD_DIM + 1) // 2), h1 - mean, 0.0)
            h2 = tl.where(inside & (pair < HEAD_DIM // 2), h2 - mean, 0.0)
        square += h1 * h1 + h2 * h2
    return mean, tl.rsqrt(_sum(square, ACROSS) / COUNT + eps)


@triton.jit
def _sum(h, ACROSS: tl.constexpr):
    total = tl.sum(h, axis=2, keep_dims=True)
    if ACROSS:
        total = tl.sum(total, axis=1, keep_dims=True)
    return total


@triton.jit
def _load(at, real, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The pairs of the heads at pointers `at` [TOKENS, GROUP, 1], as two tiles [TOKENS, GROUP, HALF] in fp32."""
    if INTERLEAVED:
        d = tl.arange(0, 2 * HALF)[None, None, :]
        h = fp32(tl.load(at + d, mask=real & (d < HEAD_DIM), other=0.0))
        h1, h2 = tl.split(tl.reshape(h, (h.shape[0], h.shape[1], HALF, 2)))
    else:
        CUT: tl.constexpr = (HEAD_DIM + 1) // 2
        d = tl.arange(0, HALF)[None, None, :]
        h1 = fp32(tl.load(at + d, mask=real & (d < CUT), other=0.0))
        h2 = fp32(tl.load(at + CUT + d, mask=real & (d < HEAD_DIM - CUT), other=0.0))
    return h1, h2


@triton.jit
def _store(at, real, h1, h2, HEAD_DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The inverse of `_load`."""
    HALF: tl.constexpr = h1.shape[2]
    dtype: tl.constexpr = at.dtype.element_ty
    if INTERLEAVED:
        d = tl.arange(0, 2 * HALF)[None, None, :]
        h = tl.reshape(tl.join(h1, h2), (h1.shape[0], h1.shape[1], 2 * HALF))
        tl.store(at + d, cast(h, dtype), mask=real & (d < HEAD_DIM))
    else:
        CUT: tl.constexpr = (HEAD_DIM + 1) // 2
        d = tl.arange(0, HALF)[None, None, :]
        tl.store(at + d, cast(h1, dtype), mask=real & (d < CUT))
        tl.store(at + CUT + d, cast(h2, dtype), mask=real & (d < HEAD_DIM - CUT))
