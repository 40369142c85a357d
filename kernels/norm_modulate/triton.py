"""`norm_modulate` in Triton: a few tokens a program, each read once and kept in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kinema.ops.common import FP8_MAX, INT8_MAX, Quantized, QuantKind, dense, group_strides_of, output_buffer
from kinema.ops.common.launch import Config, Layout, Plan, launch, layout, remembered, select_config
from kinema.ops.common.triton_numerics import cast, fp32
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate.check import checked

# ELEMENTS: how many channels of how many tokens a program holds. 4096 in 4 warps are 32 registers a thread, and rows
# wider than that fill a program alone, with one warp for each 1024 channels.
TOKENS = {
    0: Config({"ELEMENTS": 64}),
    80: Config({"ELEMENTS": 4096}, warps=4, stages=1),
}


@checked
def norm_modulate(
    x: torch.Tensor, norm: Norm, quantize: QuantKind | None, out: torch.Tensor | None
) -> torch.Tensor | Quantized:
    scale, shift = dense(norm.scale), dense(norm.shift)
    quantized = None if quantize is None else Quantized.empty(x.shape, quantize, x.device)
    y = output_buffer(out, x.shape, x.dtype, x.device) if quantized is None else quantized.data
    plan = _plan(x.device, layout(x), layout(y), layout(scale), layout(shift))
    launch(
        _norm_modulate,
        plan.grid,
        plan.config,
        x=x,
        y=y,
        weight=dense(norm.weight),
        bias=dense(norm.bias),
        scale=scale,
        shift=shift,
        token_scale=None if quantized is None else quantized.scale,
        eps=norm.eps,
        LAYER=norm.kind == "layer",
        LIMIT=INT8_MAX if quantize == "int8" else FP8_MAX,
        **plan.arguments,
    )
    return y if quantized is None else quantized


@remembered
def _plan(device: torch.device, x: Layout, y: Layout, scale: Layout | None, shift: Layout | None) -> Plan:
    batch, tokens, channels = x[0]
    scale_b, scale_g, scale_tokens = group_strides_of(tokens, scale)
    shift_b, shift_g, shift_tokens = group_strides_of(tokens, shift)
    block = triton.next_power_of_2(channels)
    table = select_config("norm_modulate", TOKENS, device)
    rows = max(1, table.blocks["ELEMENTS"] // block)
    config = Config({"ROWS": rows, "BLOCK_C": block}, warps=min(16, max(table.warps, block // 1024)), stages=1)
    arguments = {
        "total": batch * tokens,
        "tokens": tokens,
        "channels": channels,
        "x_b": x[1][0],
        "x_s": x[1][1],
        "y_b": y[1][0],
        "y_s": y[1][1],
        "scale_b": scale_b,
        "scale_g": scale_g,
        "scale_tokens": scale_tokens,
        "shift_b": shift_b,
        "shift_g": shift_g,
        "shift_tokens": shift_tokens,
    }
    return Plan((triton.cdiv(batch * tokens, rows),), config, arguments)


@triton.jit(do_not_specialize=["total", "tokens", "scale_tokens", "shift_tokens"])  # one build for every length
def _norm_modulate(
    x,
    y,
    weight,
    bias,
    scale,
    shift,
    token_scale,
    total,
    tokens,
    channels,
    eps,
    x_b,
    x_s,
    y_b,
    y_s,
    scale_b,
    scale_g,
    scale_tokens,
    shift_b,
    shift_g,
    shift_tokens,
    LAYER: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # 64 bits only after the divisions, which are slow in 64 bits
    b, s = (row // tokens).to(tl.int64), row % tokens
    c = tl.arange(0, BLOCK_C)
    real = c < channels
    mask = (row < total)[:, None] & real[None, :]

    h = fp32(tl.load(x + (b * x_b + s.to(tl.int64) * x_s)[:, None] + c[None, :], mask=mask, other=0.0))
    if LAYER:
        mean = tl.sum(h, axis=1) / channels
        # what is masked must not count in the variance
        h = tl.where(real[None, :], h - mean[:, None], 0.0)
    # one division a token: one a value would cost more than the memory traffic
    h = h * tl.div_rn(1.0, tl.sqrt_rn(tl.sum(h * h, axis=1) / channels + eps))[:, None]
    if weight is not None:
        h = h * fp32(tl.load(weight + c, mask=real))[None, :]
    if bias is not None:
        h = h + fp32(tl.load(bias + c, mask=real))[None, :]
    if scale is not None:
        at = b * scale_b + (s // scale_tokens).to(tl.int64) * scale_g
        h = h * (1.0 + fp32(tl.load(scale + at[:, None] + c[None, :], mask=mask)))
    if shift is not None:
        at = b * shift_b + (s // shift_tokens).to(tl.int64) * shift_g
        h = h + fp32(tl.load(shift + at[:, None] + c[None, :], mask=mask))

    if token_scale is not None:
        largest = tl.max(tl.where(mask, tl.abs(h), 0.0), axis=1)
        step = tl.div_rn(tl.maximum(largest, 1e-12), LIMIT)
        tl.store(token_scale + row, step, mask=row < total)
        h = h * tl.div_rn(1.0, step)[:, None]
    to = y + (b * y_b + s.to(tl.int64) * y_s)[:, None] + c[None, :]
    tl.store(to, cast(h, y.dtype.element_ty), mask=mask)
