"""`quantize` in Triton: a few tokens a program, each read once and kept in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kinema.ops.common import FP8_MAX, INT8_MAX, Quantized, QuantKind
from kinema.ops.common.launch import Config, launch, select_config
from kinema.ops.common.triton_numerics import cast, fp32
from kinema.ops.quantize.check import checked

# ELEMENTS: how many channels of how many tokens a program holds. 4096 in 4 warps are 32 registers a thread; rows
# wider than that fill a program alone, with one warp for each 1024 channels.
TOKENS = {
    0: Config({"ELEMENTS": 128}),
    80: Config({"ELEMENTS": 4096}, warps=4, stages=1),
}


@checked
def quantize(x: torch.Tensor, kind: QuantKind) -> Quantized:
    shape = x.shape
    # [B, S, C]; more than two leading axes become two, by a copy where their strides do not allow a view
    x = x.flatten(0, -3) if x.dim() > 3 else x[(None,) * (3 - x.dim())]
    quantized = quantize_together(x, None, kind)
    return Quantized(quantized.data.view(shape), quantized.scale.view(*shape[:-1], 1))


def quantize_together(x: torch.Tensor, second: torch.Tensor | None, kind: QuantKind) -> Quantized:
    """Two sources, concatenated on the way, with one scale per token over both.

    x: [B, S, C]; second: [B, S, C₂] or None; channels dense. Returns data [B, S, C + C₂].
    """
    sources = (x,) if second is None else (x, second)
    batch, tokens, channels = x.shape
    more = 0 if second is None else second.shape[2]
    quantized = Quantized.empty((batch, tokens, channels + more), kind, x.device)
    blocks = [triton.next_power_of_2(source.shape[2]) for source in sources]
    held = triton.next_power_of_2(sum(blocks))
    table = select_config("quantize", TOKENS, x.device)
    rows = max(1, table.blocks["ELEMENTS"] // held)
    launch(
        _quantize,
        (triton.cdiv(batch * tokens, rows),),
        Config(
            {"ROWS": rows, "BLOCK": blocks[0], "MORE_BLOCK": blocks[-1]},
            warps=min(16, max(table.warps, held // 1024)),
            stages=1,
        ),
        x=x,
        second=second,
        data=quantized.data,
        scale=quantized.scale,
        total=batch * tokens,
        tokens=tokens,
        channels=channels,
        more=more,
        x_b=x.stride(0),
        x_s=x.stride(1),
        second_b=0 if second is None else second.stride(0),
        second_s=0 if second is None else second.stride(1),
        LIMIT=FP8_MAX if kind == "fp8" else INT8_MAX,
    )
    return quantized


@triton.jit(do_not_specialize=["total", "tokens"])  # one build for every length
def _quantize(
    x,
    second,
    data,
    scale,
    total,
    tokens,
    channels,
    more,
    x_b,
    x_s,
    second_b,
    second_s,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MORE_BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < total
    # 64 bits only after the division, which is slow in 64 bits
    b, s = (row // tokens).to(tl.int64), (row % tokens).to(tl.int64)
    c = tl.arange(0, BLOCK)
    mask = real[:, None] & (c < channels)[None, :]
    h = fp32(tl.load(x + (b * x_b + s * x_s)[:, None] + c[None, :], mask=mask, other=0.0))
    largest = tl.max(tl.abs(h), axis=1)
    if second is not None:
        d = tl.arange(0, MORE_BLOCK)
        more_mask = real[:, None] & (d < more)[None, :]
        g = fp32(tl.load(second + (b * second_b + s * second_s)[:, None] + d[None, :], mask=more_mask, other=0.0))
        largest = tl.maximum(largest, tl.max(tl.abs(g), axis=1))

    step = tl.div_rn(tl.maximum(largest, 1e-12), LIMIT)
    tl.store(scale + row, step, mask=real)
    # one division a token: one a value would cost more than the memory traffic
    inverse = tl.div_rn(1.0, step)[:, None]
    to = data + row.to(tl.int64)[:, None] * (channels + more)
    tl.store(to + c[None, :], cast(h * inverse, data.dtype.element_ty), mask=mask)
    if second is not None:
        tl.store(to + channels + d[None, :], cast(g * inverse, data.dtype.element_ty), mask=more_mask)
