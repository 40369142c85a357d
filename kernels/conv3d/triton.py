"""`conv3d` in Triton: tables and launches. triton_prepare.py and triton_kernel.py have the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import triton

from kinema.ops.common import Target, dense, output_buffer
from kinema.ops.common.launch import Config, Table, launch, select_config
from kinema.ops.common.triton_numerics import FEWEST_FP32
from kinema.ops.conv3d import Conv3dWeight
from kinema.ops.conv3d.check import checked, kernel_and_padding
from kinema.ops.conv3d.triton_kernel import conv3d_kernel
from kinema.ops.conv3d.triton_prepare import prepare_kernel

# ELEMENTS: channels times positions that a program holds, at most POSITIONS of them
PREPARE: Table = {
    0: Config({"ELEMENTS": 256, "POSITIONS": 16}),
    80: Config({"ELEMENTS": 2048, "POSITIONS": 64}, warps=4, stages=1),
}
# A thread of the second candidate does as much as one of the first, and a weight serves twice as many positions. One of
# the third does half: where two programs fit, more warps hide latency, but read more shared memory.
PRODUCT_FP32: Table = {
    0: Config({"ROWS": 128, "FEATURES": 16}),
    80: (
        Config({"ROWS": 64, "FEATURES": 16}, warps=4, stages=3),
        Config({"ROWS": 128, "FEATURES": 16}, warps=8, stages=3),
        Config({"ROWS": 64, "FEATURES": 16}, warps=8, stages=3),
    ),
}
PRODUCT: Table = {
    0: PRODUCT_FP32[0],
    80: Config({"ROWS": 128, "FEATURES": 32}, warps=8, stages=3),
}
TABLES: dict[str, Table] = {"conv3d/prepare": PREPARE, "conv3d/fp32": PRODUCT_FP32, "conv3d": PRODUCT}
# columns of a program, as two powers of two: video VAEs have multiples of 96 and of 160 channels
WIDTHS = ((16, 0), (32, 0), (64, 0), (64, 32), (128, 0), (128, 32))
MANY_ROWS = 1 << 16  # from here on there are tiles for every GPU, and calls are of one kind
# the cost of gathering a program's left side, in columns
GATHER = 16


@dataclass(frozen=True)
class TritonWeight(Conv3dWeight):
    """weight: [Cout, kt·kh·kw, Cin]; bias: [Cout] or None; dense, fp32."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def pack_conv3d(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] | None = None,
    target: Target,
) -> TritonWeight:
    weight, padding = kernel_and_padding(weight, bias, stride, padding)
    cout, cin, kt, kh, kw = weight.shape
    taps = weight.to(target.device, torch.float32).flatten(2).transpose(1, 2).contiguous()
    if bias is not None:
        bias = bias.to(target.device, torch.float32).contiguous()
    return TritonWeight(cin, cout, (kt, kh, kw), stride, padding, taps.device, taps, bias)


@checked
def conv3d(
    x: torch.Tensor,
    weight: Conv3dWeight,
    shape: tuple[int, int, int, int, int],
    *,
    norm: torch.Tensor | None,
    activation: Literal["none", "silu"],
    upsample: int,
    cache: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    assert isinstance(weight, TritonWeight)
    past, frame = weight.history, (x.shape[3] * upsample, x.shape[4] * upsample)
    if out is None:
        batch, columns, *size = shape
        y = torch.empty(batch, *size, columns, dtype=x.dtype, device=x.device).movedim(-1, 1)
    else:
        y = output_buffer(out, shape, x.dtype, x.device, contiguous=0)
    if norm is not None or activation != "none" or cache is not None:
        x, upsample, past = _prepare(x, norm, activation, upsample, cache, past)
    _multiply(x, weight, upsample, past, frame, residual, y)
    return y


def _prepare(
    x: torch.Tensor, norm: torch.Tensor | None, activation: str, upsample: int, cache: torch.Tensor | None, past: int
) -> tuple[torch.Tensor, int, int]:
    """x normalised, activated and after the frames of its cache, which then holds its last frames; channels innermost.

    Returns it with what is left to do: the upsampling, unless there is a cache, and the zero frames in front.
    """
    batch, channels, frames, height, width = x.shape
    now, left = (1, upsample) if cache is None else (upsample, 1)
    history = 0 if cache is None else past
    height, width = height * now, width * now
    y = torch.empty(batch, history + frames, height, width, channels, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(channels)
    table = select_config("conv3d/prepare", TABLES["conv3d/prepare"], x.device)
    positions = min(table.blocks["POSITIONS"], max(1, table.blocks["ELEMENTS"] // block))
    launch(
        prepare_kernel,
        (triton.cdiv(height * width, positions), batch),
        Config({"POSITIONS": positions, "CHANNELS": block}, table.warps, table.stages),
        x=x,
        gain=dense(norm),
        cache=cache,
        y=y,
        positions=height * width,
        width=width,
        channels=channels,
        frames=frames,
        history=history,
        root=channels**0.5,
        **_strides("x", x),
        **_strides("cache", cache),
        y_b=y.stride(0),
        y_t=y.stride(1),
        y_w=y.stride(3),
        ACTIVATION=activation,
        UPSAMPLE=now,
    )
    return y.movedim(-1, 1), left, past - history


def _multiply(
    x: torch.Tensor,
    weight: TritonWeight,
    upsample: int,
    front: int,
    frame: tuple[int, int],
    residual: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """y = conv(`front` zero frames ++ upsample(x)) + bias + residual. frame: height and width of x, upsampled."""
    batch, columns, frames, height, width = y.shape
    channels = weight.in_channels
    rows = batch * frames * height * width
    is_16_bit = x.dtype.itemsize == 2
    name = "conv3d" if is_16_bit else "conv3d/fp32"
    taps = math.prod(weight.kernel)
    table = select_config(name, TABLES[name], x.device, min(rows, MANY_ROWS), columns, channels, taps)
    features = _features(channels, 16 if is_16_bit else FEWEST_FP32, table.blocks["FEATURES"])
    whole = channels % features == 0
    widths = WIDTHS if whole else WIDTHS[:-1]  # masks take registers
    column, more = min(widths, key=lambda width: triton.cdiv(columns, sum(width)) * (sum(width) + GATHER))
    blocks = {"ROWS": table.blocks["ROWS"], "COLUMNS": column, "MORE": more, "FEATURES": features}
    launch(
        conv3d_kernel,
        (triton.cdiv(rows, blocks["ROWS"]) * triton.cdiv(columns, column + more),),
        Config(blocks, table.warps, table.stages),
        x=x,
        weight=weight.weight,
        bias=weight.bias,
        residual=residual,
        y=y,
        rows=rows,
        frames=frames,
        height=height,
        width=width,
        x_height=frame[0],
        x_width=frame[1],
        channels=channels,
        columns=columns,
        **_strides("x", x),
        **_strides("y", y),
        **_strides("residual", residual),
        FRONT=front,
        TOP=weight.padding[0],
        LEFT=weight.padding[2],
        KT=weight.kernel[0],
        KH=weight.kernel[1],
        KW=weight.kernel[2],
        ST=weight.stride[0],
        SH=weight.stride[1],
        SW=weight.stride[2],
        UPSAMPLE=upsample,
        PADDED=any(weight.padding),
        WHOLE=whole,
    )


def _features(channels: int, least: int, most: int) -> int:
    """Channels of one product, a power of two with the least padding; of equals the largest if there is none.

    least: what one instruction sums, on tensor cores or in fp32.
    """
    powers = [f for f in (8, 16, 32, 64) if least <= f <= most]
    return min(powers, key=lambda f: (triton.cdiv(channels, f) * f, f if channels % f else -f))


def _strides(name: str, t: torch.Tensor | None) -> dict[str, int]:
    """Strides of t [B, C, T, H, W], by the kernels' parameter names."""
    strides = (0,) * 5 if t is None else t.stride()
    return {f"{name}_{axis}": stride for axis, stride in zip("bcthw", strides, strict=True)}
