"""The kernel of `linear`: a persistent, grouped-order GEMM with everything that follows it in its epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from kinema.ops.common.triton_numerics import activate, cast, dot, dot_fp8, dot_int8, fp32, fp32_from_e4m3


@triton.jit(do_not_specialize=["samples", "tokens", "gate_tokens"])  # one build for every length
def linear_kernel(
    x,
    second,
    weight,
    y,
    x_scale,
    weight_scale,
    bias,
    gate,
    residual,
    samples,
    tokens,
    columns,
    features,
    more,
    x_b,
    x_s,
    second_b,
    second_s,
    y_b,
    y_s,
    gate_b,
    gate_g,
    gate_tokens,
    residual_b,
    residual_s,
    COMPUTE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    GATE_IS_ROW: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    FLATTEN: tl.constexpr,
    PROMOTE: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """y = residual + gate · act(x·Wᵀ + b), tile by tile; a tile never spans two samples.

    x, second: [samples, tokens, features], [samples, tokens, more], read one after the other. weight: [columns,
    features + more], of gated weights the gate's rows before the others. x, second and weight are descriptors if
    DESCRIPTORS, else pointers. GATE_IS_ROW: a sample has one gate for all its tokens.
    """
    down, across = tl.cdiv(tokens, ROWS), tl.cdiv(columns, COLUMNS)
    width = features + more
    # one program per multiprocessor: the loops are flattened, so a tile's loads begin before the last one is stored
    for tile in tl.range(tl.program_id(0), samples * down * across, tl.num_programs(0), flatten=FLATTEN):
        b = tile // (down * across)
        i, j = _grouped(tile % (down * across), down, across, GROUP)
        top, left = i * ROWS, j * COLUMNS
        value = tl.zeros((ROWS, COLUMNS), tl.int32 if COMPUTE == tl.int8 else tl.float32)
        other = value
        value, other = _accumulate(
            value, other, x, weight, b, top, left, tokens, columns, features, 0, width, x_b, x_s,
            COMPUTE, GATED, WHOLE, DESCRIPTORS, PROMOTE, ROWS, COLUMNS, FEATURES, STEPS,
        )  # fmt: skip
        if second is not None:
            value, other = _accumulate(
                value, other, second, weight, b, top, left, tokens, columns, more, features, width, second_b, second_s,
                COMPUTE, GATED, WHOLE, DESCRIPTORS, PROMOTE, ROWS, COLUMNS, FEATURES, STEPS,
            )  # fmt: skip

        b = b.to(tl.int64)
        s = top + tl.arange(0, ROWS)
        real = s < tokens
        y_rows = y + b * y_b + (s.to(tl.int64) * y_s)[:, None]
        if x_scale is not None:
            token_scale = tl.load(x_scale + b * tokens + s, mask=real)[:, None]
        if gate is not None:
            gate_rows = gate + b * gate_b
            if not GATE_IS_ROW:
                gate_rows += ((s // gate_tokens).to(tl.int64) * gate_g)[:, None]
        if residual is not None:
            residual_rows = residual + b * residual_b + (s.to(tl.int64) * residual_s)[:, None]
        # some columns at a time: the epilogue of a whole tile does not fit into registers
        values, others = _parts(value, PARTS), _parts(other, PARTS)
        PART: tl.constexpr = COLUMNS // PARTS
        for p in tl.static_range(PARTS):
            n = left + p * PART + tl.arange(0, PART)
            exists = n < columns
            mask = real[:, None] & exists[None, :]
            h = fp32(values[p])
            if x_scale is not None:
                h = h * token_scale
            if GATED:
                g = fp32(others[p])
                if x_scale is not None:
                    g = g * token_scale
                g = activate(_scaled_and_biased(g, weight_scale, bias, n, exists), ACTIVATION)
                h = g * _scaled_and_biased(h, weight_scale, bias, n + columns, exists)
            else:
                h = activate(_scaled_and_biased(h, weight_scale, bias, n, exists), ACTIVATION)
            if gate is not None:
                if GATE_IS_ROW:
                    h = h * fp32(tl.load(gate_rows + n, mask=exists))[None, :]
                else:
                    h = h * fp32(tl.load(gate_rows + n[None, :], mask=mask))
            if residual is not None:
                h = h + fp32(tl.load(residual_rows + n[None, :], mask=mask))
            tl.store(y_rows + n[None, :], cast(h, y.dtype.element_ty), mask=mask)


@triton.jit
def _grouped(tile, down, across, GROUP: tl.constexpr):
    """Tile (i, j) in grouped order: GROUP rows of tiles down before the next column."""
    first = tile // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    within = tile % (GROUP * across)
    return first + within % height, within // height


@triton.jit
def _accumulate(
    value,
    other,
    x,
    weight,
    b,
    top,
    left,
    tokens,
    columns,
    features,
    start,
    width,
    x_b,
    x_s,
    COMPUTE: tl.constexpr,
    GATED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PROMOTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The products of one source's features with the weight's columns from `start` on, added to the accumulators.

    Returns (value, other): for gated weights the second and the first half of the rows; else `other` is unused.
    """
    k = tl.arange(0, FEATURES)
    if not DESCRIPTORS:
        # rows beyond the end repeat the last one: what they give is not stored
        s = tl.minimum(top + tl.arange(0, ROWS), tokens - 1).to(tl.int64)
        n = tl.minimum(left + tl.arange(0, COLUMNS), columns - 1).to(tl.int64)
        x_at = x + b.to(tl.int64) * x_b + (s * x_s)[:, None] + k[None, :]
        w_at = weight + start + (n * width)[None, :] + k[:, None]
        w2_at = w_at + tl.cast(columns, tl.int64) * width  # tl.cast: Triton makes an argument of 1 a constant
    for start_of_turn in tl.range(0, features, STEPS * FEATURES):
        for step in tl.static_range(STEPS):
            at = start_of_turn + step * FEATURES
            if DESCRIPTORS:
                a = x.load([b, top, at]).reshape(ROWS, FEATURES)
                w = weight.load([left, start + at]).T
            elif WHOLE:
                a = tl.load(x_at + at)
                w = tl.load(w_at + at)
            else:
                here = k < features - at
                a = tl.load(x_at + at, mask=here[None, :], other=0.0)
                w = tl.load(w_at + at, mask=here[:, None], other=0.0)
            a = _widened(a, COMPUTE)
            if GATED:
                other = _multiply(a, _widened(w, COMPUTE), other, PROMOTE)
                if DESCRIPTORS:
                    w = weight.load([left + columns, start + at]).T
                elif WHOLE:
                    w = tl.load(w2_at + at)
                else:
                    w = tl.load(w2_at + at, mask=here[:, None], other=0.0)
            value = _multiply(a, _widened(w, COMPUTE), value, PROMOTE)
    return value, other


@triton.jit
def _widened(x, COMPUTE: tl.constexpr):
    """x in the dtype of the product. e4m3 that is not multiplied as such comes as uint8."""
    if x.dtype == COMPUTE:
        return x
    elif x.dtype == tl.uint8:
        return cast(fp32_from_e4m3(x), COMPUTE)
    else:
        return cast(fp32(x), COMPUTE)


@triton.jit
def _multiply(a, b, acc, PROMOTE: tl.constexpr):
    if a.dtype == tl.int8:
        return dot_int8(a, b, acc)
    elif a.dtype == tl.float8e4nv:
        return dot_fp8(a, b, acc, PROMOTE)
    else:
        return dot(a, b, acc)


@triton.jit
def _scaled_and_biased(h, scale, bias, n, exists):
    if scale is not None:
        h = h * tl.load(scale + n, mask=exists)[None, :]
    if bias is not None:
        h = h + tl.load(bias + n, mask=exists)[None, :]
    return h


@triton.jit
def _parts(tile, PARTS: tl.constexpr):
    """The tile's columns in PARTS equal pieces, in order."""
    if PARTS == 1:
        return (tile,)
    elif PARTS == 2:
        return _halves(tile)
    else:
        tl.static_assert(PARTS == 4)
        a, b = _halves(tile)
        return _halves(a) + _halves(b)


@triton.jit
def _halves(tile):
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))
