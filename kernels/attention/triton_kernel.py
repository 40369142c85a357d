"""The kernel of `attention`: online softmax, a tile of queries and a tile of keys at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from kinema.ops.attention import FP8_BLOCK, FP8_PEAK
from kinema.ops.common.triton_numerics import LOG2_E, cast, dot, dot_fp8, fp32, rounded

NOTHING = tl.constexpr(float("-inf"))  # the largest logit of a query that has seen no key
PEAK_BITS = tl.constexpr(math.log2(FP8_PEAK))
SCALED_KEYS = tl.constexpr(FP8_BLOCK)


class Queries(NamedTuple):
    """A segment of queries. strides: of q [B, N, S, D] over B, N, S; of y over B, S. scale: [B, N, S] for an e4m3 q."""

    q: Any
    scale: Any
    strides: Any
    y: Any
    y_strides: Any
    tokens: int


class Keys(NamedTuple):
    """A segment of keys and values.

    strides: of k over B, N, R; v_strides: of v over B, N, R, D. Scales of e4m3: [B, N, ⌈R/FP8_BLOCK⌉]; its v lies
    [B, N, D, R].
    """

    k: Any
    v: Any
    k_scale: Any
    v_scale: Any
    lengths: Any
    strides: Any
    v_strides: Any
    slots: int


class Bias(NamedTuple):
    """strides: over B, N, queries and keys, 0 where one row serves all."""

    bias: Any
    strides: Any


class Lists(NamedTuple):
    """A BlockList. strides: over B, N, tiles, 0 where one list serves all."""

    indices: Any
    counts: Any
    strides: Any
    count_strides: Any
    q_block: int
    k_block: int


class Parts(NamedTuple):
    """Partial results of split keys: acc [P, B, N, ΣS, D], not yet normalised; row_max, row_sum [P, B, N, ΣS]."""

    acc: Any
    row_max: Any
    row_sum: Any


@triton.jit
def attention_kernel(
    queries,
    keys,
    k_tiles,
    v_tiles,
    bias,
    lists,
    causal,
    residual,
    residual_strides,
    parts,
    scale,
    batch,
    heads,
    tiles,
    splits,
    PERSISTENT: tl.constexpr,
    JOINT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STEPS: tl.constexpr,
    WHOLE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    BIAS_IS_ROW: tl.constexpr,
    PROMOTE: tl.constexpr,
    WIDEN: tl.constexpr,
    CUDA: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """y = softmax(q·kᵀ·scale + bias)·v + residual. `tiles` of ROWS queries per head; the keys in `splits` parts.

    queries, keys: one Queries, two if JOINT, and SEGMENTS Keys; Triton 3.6 has no len() of tuples with None in them.
    k_tiles, v_tiles: descriptors of the first segment's keys and values or None, for the tiles that need no mask.
    causal: (block, offset) or None. scale: positive, with log2(e) in it; NEGATIVE: the logits have the other sign.
    lists: a listed tile is STEPS tiles of the kernel, or any keys if STEPS is 0; WHOLE: its queries see all its keys.
    WIDEN: weights and values of e4m3 are multiplied as bf16, which holds them exactly.
    """
    if PERSISTENT:
        for work in tl.range(tl.program_id(0), batch * heads * splits * tiles, tl.num_programs(0)):
            _attend(
                work, queries, keys, k_tiles, v_tiles, bias, lists, causal, residual, residual_strides, parts, scale,
                batch, heads, tiles, splits, JOINT, SEGMENTS, STEPS, WHOLE, NEGATIVE, BIAS_IS_ROW, PROMOTE, WIDEN, CUDA,
                HEAD_DIM, BLOCK_D, CHUNK, ROWS, KEYS,
            )  # fmt: skip
    else:
        _attend(
            tl.program_id(0), queries, keys, k_tiles, v_tiles, bias, lists, causal, residual, residual_strides, parts,
            scale, batch, heads, tiles, splits, JOINT, SEGMENTS, STEPS, WHOLE, NEGATIVE, BIAS_IS_ROW, PROMOTE, WIDEN,
            CUDA, HEAD_DIM, BLOCK_D, CHUNK, ROWS, KEYS,
        )  # fmt: skip


@triton.jit
def _attend(
    work,
    queries,
    keys,
    k_tiles,
    v_tiles,
    bias,
    lists,
    causal,
    residual,
    residual_strides,
    parts,
    scale,
    batch,
    heads,
    tiles,
    splits,
    JOINT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STEPS: tl.constexpr,
    WHOLE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    BIAS_IS_ROW: tl.constexpr,
    PROMOTE: tl.constexpr,
    WIDEN: tl.constexpr,
    CUDA: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One tile of queries of a head, with one part of its keys: number `work` of batch · heads · splits · tiles."""
    tile, part, head = work % tiles, work // tiles % splits, work // tiles // splits
    b, n = head // heads, head % heads
    if causal is not None:
        tile = tiles - 1 - tile  # the longest first
    row, end, before, second = _rows(queries, lists, tile, JOINT, ROWS)
    # rows beyond the end repeat the last one: what they give is not stored
    r = tl.minimum(tl.arange(0, ROWS), end - 1 - row)
    if not JOINT:
        q, row_scale = _query(queries[0], b, n, heads, row, r, scale, NEGATIVE, HEAD_DIM, CHUNK)
    elif second:
        q, row_scale = _query(queries[1], b, n, heads, row, r, scale, NEGATIVE, HEAD_DIM, CHUNK)
    else:
        q, row_scale = _query(queries[0], b, n, heads, row, r, scale, NEGATIVE, HEAD_DIM, CHUNK)
    bias_rows = None
    if bias is not None:
        bias_rows = _start(bias.bias, bias.strides, b, n, before + row)
        if BIAS_IS_ROW:
            bias_rows += tl.zeros((1, 1), tl.int32)
        else:
            bias_rows += (r * bias.strides[2])[:, None]

    # chunked queries are read from shared memory where they are needed: no thread has the registers to keep them
    CHUNKED: tl.constexpr = CHUNK < BLOCK_D
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    m_i = tl.full((ROWS,), NOTHING, tl.float32)
    l_i = tl.zeros((ROWS,), tl.float32)
    first = 0
    if lists is None:
        for i in tl.static_range(SEGMENTS):
            by_all, by_any = _seen(keys[i], i == SEGMENTS - 1, causal, b, row, end, ROWS)
            by_row = _limits(causal, row, r) if causal is not None and i == SEGMENTS - 1 else None
            start, stop = _share(tl.cdiv(by_any, KEYS), part, splits)
            start, stop = start * KEYS, tl.minimum(stop * KEYS, by_any)
            whole = tl.minimum(by_all // KEYS * KEYS, stop)
            for at in tl.range(start, whole, KEYS, disable_licm=CHUNKED):
                acc, m_i, l_i = _tile(
                    acc, m_i, l_i, q, keys[i], k_tiles if i == 0 else None, v_tiles if i == 0 else None,
                    b, n, heads, at, None, None, None, row_scale,
                    bias, bias_rows, first, PROMOTE, WIDEN, CUDA, HEAD_DIM, BLOCK_D, KEYS,
                )  # fmt: skip
            for at in tl.range(tl.maximum(start, whole), stop, KEYS, num_stages=1, disable_licm=CHUNKED):
                acc, m_i, l_i = _tile(
                    acc, m_i, l_i, q, keys[i], None, None, b, n, heads, at, None, stop, by_row, row_scale,
                    bias, bias_rows, first, PROMOTE, WIDEN, CUDA, HEAD_DIM, BLOCK_D, KEYS,
                )  # fmt: skip
            first += keys[i].slots
    else:
        listed, start, stop = _listed(lists, b, n, tile, row < end, part, splits, ROWS)
        if STEPS > 0:
            _, by_any = _seen(keys[0], True, causal, b, row, end, ROWS)
            by_row = _limits(causal, row, r) if causal is not None else None
            for step in tl.range(start * STEPS, stop * STEPS, disable_licm=CHUNKED):
                at = tl.load(listed + step // STEPS).to(tl.int32) * lists.k_block + step % STEPS * KEYS
                if WHOLE:
                    acc, m_i, l_i = _tile(
                        acc, m_i, l_i, q, keys[0], k_tiles, v_tiles, b, n, heads, at, None, None, None, row_scale,
                        bias, bias_rows, 0, PROMOTE, WIDEN, CUDA, HEAD_DIM, BLOCK_D, KEYS,
                    )  # fmt: skip
                else:
                    acc, m_i, l_i = _tile(
                        acc, m_i, l_i, q, keys[0], None, None, b, n, heads, at, None, by_any, by_row, row_scale,
                        bias, bias_rows, 0, PROMOTE, WIDEN, CUDA, HEAD_DIM, BLOCK_D, KEYS,
                    )  # fmt: skip
        else:
            for j in tl.range(start, stop):
                name = tl.load(listed + j).to(tl.int32)
                first = 0
                for i in tl.static_range(SEGMENTS):
                    _, by_any = _seen(keys[i], i == SEGMENTS - 1, causal, b, row, end, ROWS)
                    by_row = _limits(causal, row, r) if causal is not None and i == SEGMENTS - 1 else None
                    low = tl.maximum(name * lists.k_block - first, 0)
                    high = tl.minimum((name + 1) * lists.k_block - first, by_any)
                    for at in tl.range(low // KEYS * KEYS, high, KEYS, disable_licm=CHUNKED):
                        acc, m_i, l_i = _tile(
                            acc, m_i, l_i, q, keys[i], None, None, b, n, heads, at, low, high, by_row, row_scale,
                            bias, bias_rows, first, PROMOTE, WIDEN, CUDA, HEAD_DIM, BLOCK_D, KEYS,
                        )  # fmt: skip
                    first += keys[i].slots

    real = tl.arange(0, ROWS) < end - row
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = real[:, None] & (d < HEAD_DIM)
    if parts is not None:
        rows = queries[0].tokens
        if JOINT:
            rows += queries[1].tokens
        at = ((part * batch + b).to(tl.int64) * heads + n) * rows + before + row + tl.arange(0, ROWS)
        tl.store(parts.acc + at[:, None] * HEAD_DIM + d, acc, mask=mask)
        tl.store(parts.row_max + at, m_i, mask=real)
        tl.store(parts.row_sum + at, l_i, mask=real)
    else:
        y = acc * (1.0 / tl.where(l_i > 0.0, l_i, 1.0))[:, None]
        if residual is not None:
            y += fp32(tl.load(_output(residual, residual_strides, b, n, row, d, ROWS, HEAD_DIM), mask=mask, other=0.0))
        if not JOINT:
            _store(queries[0], b, n, row, d, y, mask, HEAD_DIM)
        elif second:
            _store(queries[1], b, n, row, d, y, mask, HEAD_DIM)
        else:
            _store(queries[0], b, n, row, d, y, mask, HEAD_DIM)


@triton.jit
def _rows(queries, lists, tile, JOINT: tl.constexpr, ROWS: tl.constexpr):
    """A tile's first query and end in its segment, the queries before that segment, and whether it is the second."""
    before, second = 0, False
    if lists is not None:
        # a tile of the list is cut into the kernel's
        inside = tl.cdiv(lists.q_block, ROWS)
        row = tile // inside * lists.q_block + tile % inside * ROWS
        end = tl.minimum((tile // inside + 1) * lists.q_block, queries[0].tokens)
    elif not JOINT:
        row, end = tile * ROWS, queries[0].tokens
    else:
        inside = tl.cdiv(queries[0].tokens, ROWS)
        second = tile >= inside
        row = tl.where(second, tile - inside, tile) * ROWS
        end = tl.where(second, queries[1].tokens, queries[0].tokens)
        before = tl.where(second, queries[0].tokens, 0)
    return row, end, before, second


@triton.jit
def _query(queries, b, n, heads, row, r, scale, NEGATIVE: tl.constexpr, HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr):
    """The queries `row` + `r` of a head, as tiles [ROWS, CHUNK] of its channels, and the scale of each one's logits."""
    at = _start(queries.q, queries.strides, b, n, row) + (r * queries.strides[2])[:, None]
    chunks = ()
    for c in tl.static_range(0, HEAD_DIM, CHUNK):
        d, exists = tl.arange(0, CHUNK) + c, None
        if c + CHUNK > HEAD_DIM:
            exists = d < HEAD_DIM
        q = _load(at + d[None, :], None, exists)
        if NEGATIVE:
            q = cast(-fp32(q), q.dtype)
        chunks = chunks + (q,)  # type: ignore[assignment]
    row_scale = tl.full(r.shape, 1.0, tl.float32) * scale
    if queries.scale is not None:
        row_scale *= tl.load(queries.scale + (b.to(tl.int64) * heads + n) * queries.tokens + row + r)
    return chunks, row_scale


@triton.jit
def _output(y, strides, b, n, row, d, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Pointers to the results of a tile of queries."""
    start = y + b.to(tl.int64) * strides[0] + tl.cast(row, tl.int64) * strides[1] + n * HEAD_DIM
    return start + (tl.arange(0, ROWS) * strides[1])[:, None] + d


@triton.jit
def _store(queries, b, n, row, d, y, mask, HEAD_DIM: tl.constexpr):
    at = _output(queries.y, queries.y_strides, b, n, row, d, y.shape[0], HEAD_DIM)
    tl.store(at, cast(y, queries.y.dtype.element_ty), mask=mask)


@triton.jit
def _seen(keys, LAST: tl.constexpr, causal, b, row, end, ROWS: tl.constexpr):
    """How many leading keys of a segment all queries of a tile see, and any of them sees."""
    by_any = keys.slots
    if keys.lengths is not None:
        by_any = tl.minimum(tl.load(keys.lengths + b).to(tl.int32), by_any)
    by_all = by_any
    if causal is not None and LAST:
        by_all = tl.minimum(_causal(row, causal), by_any)
        by_any = tl.minimum(_causal(tl.minimum(row + ROWS, end) - 1, causal), by_any)
    return by_all, by_any


@triton.jit
def _limits(causal, row, r):
    """How many leading keys of the last segment each query of a tile sees, as a column; there may be fewer keys."""
    return _causal(row + r, causal)[:, None]


@triton.jit
def _causal(i, causal):
    """How many keys of the last segment query `i` sees."""
    i += causal[1]
    return tl.where(i < 0, 0, (i // causal[0] + 1) * causal[0])


@triton.jit
def _listed(lists, b, n, tile, exists, part, splits, ROWS: tl.constexpr):
    """The list of a tile of queries, and the range of its entries that belongs to a part."""
    t = tile // tl.cdiv(lists.q_block, ROWS)
    b, n, t = b.to(tl.int64), n.to(tl.int64), t.to(tl.int64)
    count = tl.load(lists.counts + b * lists.count_strides[0] + n * lists.count_strides[1] + t * lists.count_strides[2])
    start, stop = _share(tl.where(exists, count.to(tl.int32), 0), part, splits)
    return lists.indices + b * lists.strides[0] + n * lists.strides[1] + t * lists.strides[2], start, stop


@triton.jit
def _share(count, part, splits):
    """Begin and end of one of `splits` equal parts of `count` things."""
    size = tl.cdiv(count, splits)
    return tl.minimum(part * size, count), tl.minimum((part + 1) * size, count)


@triton.jit
def _tile(
    acc,
    m_i,
    l_i,
    q,
    keys,
    k_tiles,
    v_tiles,
    b,
    n,
    heads,
    at,
    low,
    high,
    by_row,
    row_scale,
    bias,
    bias_rows,
    first,
    PROMOTE: tl.constexpr,
    WIDEN: tl.constexpr,
    CUDA: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One step of the online softmax, with the keys from `at` on: acc, m_i (row maxima) and l_i (row sums).

    k_tiles, v_tiles: descriptors that read them instead of pointers, or None. low, high: the range of these keys that
    may be read, None if all; by_row: how many leading ones each query sees.
    """
    CHUNK: tl.constexpr = q[0].shape[1]
    FP8: tl.constexpr = keys.k_scale is not None
    MASKED: tl.constexpr = high is not None
    PEAK: tl.constexpr = PEAK_BITS if FP8 else 0.0
    key = tl.arange(0, KEYS)
    readable = (key < high - at) if MASKED else None
    if low is not None:
        readable = readable & (key >= low - at)
    k = ()
    for c in tl.static_range(len(q)):
        if k_tiles is not None:
            k = k + (k_tiles.load([b, n, at, 0]).reshape(KEYS, CHUNK).T,)  # type: ignore[assignment]
        else:
            d, exists = tl.arange(0, CHUNK) + c * CHUNK, None
            if (c + 1) * CHUNK > HEAD_DIM:
                exists = d < HEAD_DIM
            k_at = _start(keys.k, keys.strides, b, n, at) + (key * keys.strides[2])[None, :] + d[:, None]
            k = k + (_load(k_at, exists, readable),)  # type: ignore[assignment]
    logits = tl.zeros((q[0].shape[0], KEYS), tl.float32)
    for c in tl.static_range(len(q)):
        if FP8:
            logits = dot_fp8(q[c], k[c], logits, PROMOTE)
        else:
            logits = dot(q[c], k[c], logits)
    if FP8:
        # a list may name a tile that lies behind the last key
        block = tl.minimum(at, keys.slots - 1) // SCALED_KEYS
        block += (b.to(tl.int64) * heads + n) * tl.cdiv(keys.slots, SCALED_KEYS)
        row_scale *= tl.load(keys.k_scale + block)

    if bias is not None:
        bias_at = bias_rows + ((first + at + key).to(tl.int64) * bias.strides[3])[None, :]
        logits = logits * row_scale[:, None] + LOG2_E * fp32(_load(bias_at, None, readable))
        row_scale = tl.full(row_scale.shape, 1.0, tl.float32)
    if MASKED:
        visible = readable[None, :]  # type: ignore[index]
        if by_row is not None:
            visible = visible & (key[None, :] < by_row - at)
        logits = tl.where(visible, logits, NOTHING)
    # the scale is positive, so the maximum may be taken before it
    m_new = tl.maximum(m_i, tl.max(logits, axis=1) * row_scale)
    base = m_new
    if MASKED or bias is not None:
        # a query that has seen nothing yet: -inf - -inf is NaN
        base = tl.where(m_new == NOTHING, 0.0, m_new)
    weights = tl.exp2(logits * row_scale[:, None] - (base - PEAK)[:, None])
    alpha = tl.exp2(m_i - base)

    if v_tiles is not None:
        if FP8:
            v = v_tiles.load([b, n, 0, at]).reshape(BLOCK_D, KEYS).T
        else:
            v = v_tiles.load([b, n, at, 0]).reshape(KEYS, BLOCK_D)
    else:
        d, exists = tl.arange(0, BLOCK_D), None
        if BLOCK_D > HEAD_DIM:
            exists = d < HEAD_DIM
        v_at = _start(keys.v, keys.v_strides, b, n, at)
        v_at += (key * keys.v_strides[2])[:, None] + (d * keys.v_strides[3])[None, :]
        v = _load(v_at, readable, exists)
    weights, counted = rounded(weights, v.dtype, CUDA)
    l_i = l_i * alpha + tl.sum(counted, axis=1)
    acc *= alpha[:, None]
    if FP8:
        if WIDEN:
            product = dot(cast(fp32(weights), tl.bfloat16), cast(fp32(v), tl.bfloat16), tl.zeros_like(acc))
        else:
            product = dot_fp8(weights, v, tl.zeros_like(acc), PROMOTE)
        acc += product * tl.load(keys.v_scale + block)
    else:
        acc = dot(weights, v, acc)
    return acc, m_new, l_i


@triton.jit
def _start(x, strides, b, n, at):
    """The pointer to token `at` of a head; offsets within a tile fit into 32 bits."""
    return x + b.to(tl.int64) * strides[0] + n.to(tl.int64) * strides[1] + tl.cast(at, tl.int64) * strides[2]


@triton.jit
def _load(at, rows, columns):
    """A tile, 0 outside the masks; without a mask if both are None."""
    if rows is None and columns is None:
        return tl.load(at)
    elif rows is None:
        return tl.load(at, mask=columns[None, :], other=0.0)
    elif columns is None:
        return tl.load(at, mask=rows[:, None], other=0.0)
    else:
        return tl.load(at, mask=rows[:, None] & columns[None, :], other=0.0)
