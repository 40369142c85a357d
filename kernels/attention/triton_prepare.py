"""Prepares operands of `attention` in Triton: rotation on read, and quantisation to e4m3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kinema.ops.attention import FP8_BLOCK
from kinema.ops.common import FP8_MAX, Rope, dense
from kinema.ops.common.launch import Config, launch, select_config
from kinema.ops.common.triton_numerics import cast, fp32

# VALUES: of a tile, whole heads of some tokens. 4096 in 4 warps are 32 registers a thread. Where FP8_BLOCK tokens share
# a scale, they are one tile, with one warp for each 2048 values.
TILES = {
    0: Config({"VALUES": 256}),
    80: Config({"VALUES": 4096}, warps=4, stages=1),
}


@dataclass(frozen=True)
class Prepared:
    """data: [B, N, S, D] (any strides); scale: e4m3's, [B, N, ⌈S/block⌉] fp32, or None."""

    data: torch.Tensor
    scale: torch.Tensor | None = None


def prepare(
    x: torch.Tensor,
    *,
    rope: Rope | None = None,
    lengths: torch.Tensor | None = None,
    fp8: bool = False,
    block: int = 1,
    channels_first: bool = False,
) -> Prepared:
    """x [B, N, S, D], rotated, then in e4m3 with `block` tokens to a scale; 0 beyond lengths.

    block: 1 or FP8_BLOCK. channels_first: a channel's tokens are contiguous, as tensor cores need values in e4m3.
    """
    batch, heads, tokens, head_dim = x.shape
    cos, sin = (dense(rope.cos), dense(rope.sin)) if rope is not None else (None, None)
    half = max(8, triton.next_power_of_2((head_dim + 1) // 2))
    table = select_config("attention/prepare", TILES, x.device)
    rows, warps = max(1, table.blocks["VALUES"] // (2 * half)), table.warps
    if block > 1:
        rows, warps = FP8_BLOCK, min(16, max(table.warps, FP8_BLOCK * 2 * half // 2048))
    dtype = torch.float8_e4m3fn if fp8 else x.dtype
    if channels_first:
        # rows are multiples of 16 bytes, as descriptors need
        padded = triton.cdiv(tokens, 16) * 16
        data = torch.empty(batch, heads, head_dim, padded, dtype=dtype, device=x.device)
        y = data.transpose(2, 3)
    else:
        y = torch.empty(batch, heads, tokens, head_dim, dtype=dtype, device=x.device)
    scale = None
    if fp8:
        scale = torch.empty(batch, heads, triton.cdiv(tokens, block), dtype=torch.float32, device=x.device)
    launch(
        prepare_kernel,
        (triton.cdiv(y.shape[2], rows), batch * heads),
        Config({"ROWS": rows, "HALF": half}, warps, stages=1),
        x=x,
        y=y,
        scale=scale,
        cos=cos,
        sin=sin,
        lengths=lengths,
        heads=heads,
        tokens=tokens,
        written=y.shape[2],
        start=rope.start if rope is not None else 0,
        rotated=cos.shape[-2] if cos is not None else 0,
        x_strides=x.stride()[:3],
        y_strides=y.stride(),
        cos_b=cos.stride(0) if cos is not None and cos.ndim == 3 and len(cos) > 1 else 0,
        cos_s=cos.stride(-2) if cos is not None else 0,
        sin_b=sin.stride(0) if sin is not None and sin.ndim == 3 and len(sin) > 1 else 0,
        sin_s=sin.stride(-2) if sin is not None else 0,
        INTERLEAVED=rope is None or rope.interleaved,
        SHARED=block > 1,
        LIMIT=FP8_MAX,
        HEAD_DIM=head_dim,
    )
    return Prepared(y, scale)


@triton.jit
def prepare_kernel(
    x,
    y,
    scale,
    cos,
    sin,
    lengths,
    heads,
    tokens,
    written,
    start,
    rotated,
    x_strides,
    y_strides,
    cos_b,
    cos_s,
    sin_b,
    sin_s,
    INTERLEAVED: tl.constexpr,
    SHARED: tl.constexpr,
    LIMIT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Writes tokens below `written`, those beyond a sample's length (or `tokens`) as 0. y_strides: B, N, S, D."""
    head = tl.program_id(1)
    b, n = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    s = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    count = tokens
    if lengths is not None:
        count = tl.minimum(tl.load(lengths + b).to(tl.int32), count)
    real = (s < count)[:, None]
    at = x + b * x_strides[0] + n * x_strides[1] + (s.to(tl.int64) * x_strides[2])[:, None]
    first, second = _load(at, real, HEAD_DIM, HALF, INTERLEAVED)
    if cos is not None:
        r, pair = s[:, None] - start, tl.arange(0, HALF)[None, :]
        turned = (r >= 0) & (r < rotated) & real & (pair < HEAD_DIM // 2)
        c = fp32(tl.load(cos + b * cos_b + r.to(tl.int64) * cos_s + pair, mask=turned, other=1.0))
        z = fp32(tl.load(sin + b * sin_b + r.to(tl.int64) * sin_s + pair, mask=turned, other=0.0))
        first, second = first * c - second * z, first * z + second * c
    if scale is not None:
        size = tl.max(tl.maximum(_size(first), _size(second)), axis=1)
        if SHARED:
            step = tl.div_rn(tl.maximum(tl.max(size, axis=0), 1e-12), LIMIT)
            tl.store(scale + head.to(tl.int64) * tl.num_programs(0) + tl.program_id(0), step)
            inverse = tl.div_rn(1.0, step)
        else:
            step = tl.div_rn(tl.maximum(size, 1e-12), LIMIT)
            tl.store(scale + head.to(tl.int64) * tokens + s, step, mask=s < tokens)
            inverse = tl.div_rn(1.0, step)[:, None]
        first, second = first * inverse, second * inverse
    to = y + b * y_strides[0] + n * y_strides[1] + (s.to(tl.int64) * y_strides[2])[:, None]
    _store(to, y_strides[3], (s < written)[:, None], first, second, HEAD_DIM, INTERLEAVED)


@triton.jit
def _size(h):
    """|h|; NaN, which unseen slots may hold, counts as 0."""
    return tl.where(h == h, tl.abs(h), 0.0)


@triton.jit
def _load(at, real, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The pairs of the heads at pointers `at` [ROWS, 1], as two tiles [ROWS, HALF] in fp32."""
    if INTERLEAVED:
        d = tl.arange(0, 2 * HALF)[None, :]
        h = fp32(tl.load(at + d, mask=real & (d < HEAD_DIM), other=0.0))
        first, second = tl.split(tl.reshape(h, (h.shape[0], HALF, 2)))
    else:
        d = tl.arange(0, HALF)[None, :]
        mask = real & (d < HEAD_DIM // 2)
        first = fp32(tl.load(at + d, mask=mask, other=0.0))
        second = fp32(tl.load(at + HEAD_DIM // 2 + d, mask=mask, other=0.0))
    return first, second


@triton.jit
def _store(at, stride, real, first, second, HEAD_DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The inverse of `_load`, channels `stride` apart."""
    HALF: tl.constexpr = first.shape[1]
    dtype: tl.constexpr = at.dtype.element_ty
    if INTERLEAVED:
        d = tl.arange(0, 2 * HALF)[None, :]
        h = tl.reshape(tl.join(first, second), (first.shape[0], 2 * HALF))
        tl.store(at + d * stride, cast(h, dtype), mask=real & (d < HEAD_DIM))
    else:
        d = tl.arange(0, HALF)[None, :]
        mask = real & (d < HEAD_DIM // 2)
        tl.store(at + d * stride, cast(first, dtype), mask=mask)
        tl.store(at + (HEAD_DIM // 2 + d) * stride, cast(second, dtype), mask=mask)
