"""Prepares the input of `conv3d`'s product: norm and SiLU, once per value, after the past frames, which it updates."""

from __future__ import annotations

import triton
import triton.language as tl

from kinema.ops.common.triton_numerics import activate, cast, fp32


@triton.jit(do_not_specialize=["positions", "width", "frames", "history"])  # one build for every size
def prepare_kernel(
    x,
    gain,
    cache,
    y,
    positions,
    width,
    channels,
    frames,
    history,
    root,
    x_b,
    x_c,
    x_t,
    x_h,
    x_w,
    cache_b,
    cache_c,
    cache_t,
    cache_h,
    cache_w,
    y_b,
    y_t,
    y_w,
    ACTIVATION: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y = cache ++ act(norm(x)), upsampled; then cache = the last frames of y.

    A program does all frames of some positions and all their channels, so no other reads the cache that it writes.
    positions, width: of a frame of y, whose channels are dense. history: frames of the cache, 0 without one.
    root: √channels.
    """
    b = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.arange(0, CHANNELS)
    exists = c < channels
    mask = (p < positions)[:, None] & exists[None, :]
    h, w = p // width, p % width
    x_position = (h // UPSAMPLE).to(tl.int64) * x_h + (w // UPSAMPLE).to(tl.int64) * x_w
    x_at = x + b * x_b + x_position[:, None] + (c.to(tl.int64) * x_c)[None, :]
    y_at = y + b * y_b + (p.to(tl.int64) * y_w)[:, None] + c[None, :]
    if gain is not None:
        g = root * fp32(tl.load(gain + c, mask=exists, other=0.0))[None, :]
    if cache is not None:
        cache_position = h.to(tl.int64) * cache_h + w.to(tl.int64) * cache_w
        cache_at = cache + b * cache_b + cache_position[:, None] + (c.to(tl.int64) * cache_c)[None, :]
        renewed = cache_at  # the next frame of the cache to be written, which has been read by then
        for i in range(history):
            past = fp32(tl.load(cache_at, mask=mask, other=0.0))
            tl.store(y_at, cast(past, y.dtype.element_ty), mask=mask)
            if i >= frames:
                # a chunk shorter than the past keeps part of it; other warps may still read what is overwritten
                tl.debug_barrier()
                tl.store(renewed, cast(past, cache.dtype.element_ty), mask=mask)
                renewed += cache_t
            cache_at += cache_t
            y_at += y_t
        tl.debug_barrier()

    for t in range(frames):
        value = fp32(tl.load(x_at, mask=mask, other=0.0))
        if gain is not None:
            length = tl.sqrt_rn(tl.sum(value * value, axis=1))
            value = value * (1.0 / tl.maximum(length, 1e-12))[:, None] * g
        made = cast(activate(value, ACTIVATION), y.dtype.element_ty)
        tl.store(y_at, made, mask=mask)
        if cache is not None:  # noqa: SIM102 (the first is decided at compile time, the second at run time)
            if t >= frames - history:
                tl.store(renewed, cast(fp32(made), cache.dtype.element_ty), mask=mask)
                renewed += cache_t
        x_at += x_t
        y_at += y_t
