"""Combines the partial results of split keys (split-KV): the second half of attention for short queries."""

from __future__ import annotations

import triton
import triton.language as tl

from kinema.ops.attention.triton_kernel import NOTHING
from kinema.ops.common.triton_numerics import cast, fp32


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
    """y = Σ 2^m·acc / Σ 2^m·l + residual, summed over the parts of the keys.

    For the `count` queries of a segment, after the first `before` of `queries`; y, residual: strides over B, S.
    """
    head = tl.program_id(1)
    b, n = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    s = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = s < count
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = real[:, None] & (d < HEAD_DIM)
    at = head.to(tl.int64) * queries + before + s
    size = tl.num_programs(1).to(tl.int64) * queries

    m_i = tl.full((ROWS,), NOTHING, tl.float32)
    for part in tl.range(0, splits):
        m_i = tl.maximum(m_i, tl.load(parts.row_max + part * size + at, mask=real, other=0.0))
    # a query that has seen nothing: -inf - -inf is NaN
    m_i = tl.where(m_i == NOTHING, 0.0, m_i)
    l_i = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for part in tl.range(0, splits):
        alpha = tl.exp2(tl.load(parts.row_max + part * size + at, mask=real, other=0.0) - m_i)
        l_i += alpha * tl.load(parts.row_sum + part * size + at, mask=real, other=0.0)
        acc += alpha[:, None] * tl.load(parts.acc + (part * size + at)[:, None] * HEAD_DIM + d, mask=mask, other=0.0)
    h = acc * (1.0 / tl.where(l_i > 0.0, l_i, 1.0))[:, None]
    if residual is not None:
        from_ = b * residual_strides[0] + s.to(tl.int64) * residual_strides[1] + n * HEAD_DIM
        h += fp32(tl.load(residual + from_[:, None] + d, mask=mask, other=0.0))
    to = b * y_strides[0] + s.to(tl.int64) * y_strides[1] + n * HEAD_DIM
    tl.store(y + to[:, None] + d, cast(h, y.dtype.element_ty), mask=mask)
