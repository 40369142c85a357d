"""Sums over parts of the keys, made one: the second half of attention for short queries."""

from __future__ import annotations

import triton
import triton.language as tl

from kinema.ops.attention.triton_kernel import NOTHING
from kinema.ops.common.triton_numerics import narrow, wide


@triton.jit
def combine_kernel(
    parts,
    y,
    residual,
    heads,
    queries,
    before,
    count,
    splits,
    y_strides,
    residual_strides,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """y = Σ 2^top·sums / Σ 2^top·total + residual, over what the parts of the keys left.

    For `count` queries, a segment, after the `before` first of `queries`; y, residual: strides over B, S.
    """
    head = tl.program_id(1)
    b, n = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    s = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = s < count
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = real[:, None] & (d < HEAD_DIM)
    at = head.to(tl.int64) * queries + before + s
    size = tl.num_programs(1).to(tl.int64) * queries

    top = tl.full((ROWS,), NOTHING, tl.float32)
    for part in tl.range(0, splits):
        top = tl.maximum(top, tl.load(parts.tops + part * size + at, mask=real, other=0.0))
    # a query that has seen nothing: -inf - -inf is NaN
    top = tl.where(top == NOTHING, 0.0, top)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for part in tl.range(0, splits):
        fade = tl.exp2(tl.load(parts.tops + part * size + at, mask=real, other=0.0) - top)
        total += fade * tl.load(parts.totals + part * size + at, mask=real, other=0.0)
        sums += fade[:, None] * tl.load(parts.sums + (part * size + at)[:, None] * HEAD_DIM + d, mask=mask, other=0.0)
    h = sums * (1.0 / tl.where(total > 0.0, total, 1.0))[:, None]
    if residual is not None:
        from_ = b * residual_strides[0] + s.to(tl.int64) * residual_strides[1] + n * HEAD_DIM
        h += wide(tl.load(residual + from_[:, None] + d, mask=mask, other=0.0))
    to = b * y_strides[0] + s.to(tl.int64) * y_strides[1] + n * HEAD_DIM
    tl.store(y + to[:, None] + d, narrow(h, y.dtype.element_ty), mask=mask)
