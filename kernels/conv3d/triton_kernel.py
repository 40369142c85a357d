"""The kernel of `conv3d`: a matrix product whose left side is gathered, tap by tap, from channels-last memory."""

from __future__ import annotations

import triton
import triton.language as tl

from kinema.ops.common.triton_numerics import cast, dot, fp32


@triton.jit(do_not_specialize=["rows", "frames", "height", "width", "x_height", "x_width"])  # one build for every size
def conv3d_kernel(
    x,
    weight,
    bias,
    residual,
    y,
    rows,
    frames,
    height,
    width,
    x_height,
    x_width,
    channels,
    columns,
    x_b,
    x_c,
    x_t,
    x_h,
    x_w,
    y_b,
    y_c,
    y_t,
    y_h,
    y_w,
    residual_b,
    residual_c,
    residual_t,
    residual_h,
    residual_w,
    FRONT: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ST: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    PADDED: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MORE: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """y = conv(upsample(x)) + bias + residual; a row is a position of y, in the order batch, frame, height, width.

    frames, height, width: of y; x_height, x_width: of x, upsampled. FRONT, TOP, LEFT: zeros before x. PADDED: a tap may
    leave the frame. weight: [columns, KT·KH·KW, channels]. WHOLE: FEATURES divides the channels. A program's columns
    are COLUMNS and MORE next to them, for tiles of 96 = 64 + 32.
    """
    across = tl.cdiv(columns, COLUMNS + MORE)
    m = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) % across * (COLUMNS + MORE)
    real = m < rows
    m = tl.minimum(m, rows - 1)  # beyond the end the last row is repeated: its result is not stored
    b = (m // width // height // frames).to(tl.int64)
    t, h, w = m // width // height % frames, m // width % height, m % width
    t0, h0, w0 = t * ST - FRONT, h * SH - TOP, w * SW - LEFT

    x_rows = x + b * x_b
    if UPSAMPLE == 1:
        x_rows += t0.to(tl.int64) * x_t + h0.to(tl.int64) * x_h + w0.to(tl.int64) * x_w
    features = KT * KH * KW * channels
    k = tl.arange(0, FEATURES)
    w_at = weight + (_columns(n, columns, COLUMNS) * features)[None, :] + k[:, None]
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    if MORE:
        w2_at = weight + (_columns(n + COLUMNS, columns, MORE) * features)[None, :] + k[:, None]
        other = tl.zeros((ROWS, MORE), tl.float32)
    tap, start = 0, 0
    for _ in tl.range(KT * KH * KW * tl.cdiv(channels, FEATURES)):
        dt, dh, dw = tap // (KH * KW), tap // KW % KH, tap % KW
        ti, hi, wi = t0 + dt, h0 + dh, w0 + dw
        if UPSAMPLE == 1:
            at = tl.cast(dt, tl.int64) * x_t + tl.cast(dh, tl.int64) * x_h + tl.cast(dw, tl.int64) * x_w
        else:
            at = ti.to(tl.int64) * x_t + (hi // UPSAMPLE).to(tl.int64) * x_h + (wi // UPSAMPLE).to(tl.int64) * x_w
        inside = ti >= 0
        if PADDED:
            inside = inside & (hi >= 0) & (hi < x_height) & (wi >= 0) & (wi < x_width)
        at = x_rows + at
        mask = inside[:, None] & (k < channels - start)[None, :]
        if WHOLE:
            mask = inside[:, None]
        a = tl.load(at[:, None] + (start + k)[None, :] * x_c, mask=mask, other=0.0)
        shift = tap * channels + start
        if WHOLE:
            value = _multiply(a, tl.load(w_at + shift), value)
            if MORE:
                other = _multiply(a, tl.load(w2_at + shift), other)
        else:
            here = (k < channels - start)[:, None]
            value = _multiply(a, tl.load(w_at + shift, mask=here, other=0.0), value)
            if MORE:
                other = _multiply(a, tl.load(w2_at + shift, mask=here, other=0.0), other)
        # one loop over taps and channels, so that its loads begin early: at the last channels go on to the next tap
        start += FEATURES
        tap = tl.where(start < channels, tap, tap + 1)
        start = tl.where(start < channels, start, 0)

    t, h, w = t.to(tl.int64), h.to(tl.int64), w.to(tl.int64)
    y_rows = y + b * y_b + t * y_t + h * y_h + w * y_w
    residual_rows = residual
    if residual is not None:
        residual_rows = residual + b * residual_b + t * residual_t + h * residual_h + w * residual_w
    _store(value, n, columns, bias, residual_rows, residual_c, y_rows, y_c, real)
    if MORE:
        _store(other, n + COLUMNS, columns, bias, residual_rows, residual_c, y_rows, y_c, real)


@triton.jit
def _columns(n, columns, COUNT: tl.constexpr):
    """Columns n to n + COUNT; beyond the end the last one."""
    return tl.minimum(n + tl.arange(0, COUNT), columns - 1).to(tl.int64)


@triton.jit
def _multiply(a, w, acc):
    """acc + a·w in a's dtype, to which the fp32 weights w are rounded."""
    return dot(a, cast(w, a.dtype), acc)


@triton.jit
def _store(value, n, columns, bias, residual_rows, residual_c, y_rows, y_c, real):
    """Columns from n on, with bias and residual, to the rows at these pointers."""
    n = n + tl.arange(0, value.shape[1])
    exists = n < columns
    mask = real[:, None] & exists[None, :]
    if bias is not None:
        value = value + tl.load(bias + n, mask=exists)[None, :]
    n = n.to(tl.int64)[None, :]
    if residual_rows is not None:
        value = value + fp32(tl.load(residual_rows[:, None] + n * residual_c, mask=mask))
    tl.store(y_rows[:, None] + n * y_c, cast(value, y_rows.dtype.element_ty), mask=mask)
