"""`patch_embed` in Triton: patches are gathered into the tiles of a matrix product, and tokens are its output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kinema.ops.common import Target, output_buffer
from kinema.ops.common.launch import Config, launch, select_config
from kinema.ops.common.triton_numerics import cast, dot, fp32
from kinema.ops.patch_embed import PatchEmbedWeight
from kinema.ops.patch_embed.check import check_pack, checked

TILES = {
    0: Config({"ROWS": 32, "COLUMNS": 32, "FEATURES": 16}),
    80: Config({"ROWS": 64, "COLUMNS": 128, "FEATURES": 32}, warps=8, stages=3),
    90: Config({"ROWS": 128, "COLUMNS": 128, "FEATURES": 32}, warps=8, stages=3),
    120: Config({"ROWS": 64, "COLUMNS": 128, "FEATURES": 32}, warps=8, stages=3),
}
TILES_FP32 = {
    0: TILES[0],
    80: Config({"ROWS": 64, "COLUMNS": 128, "FEATURES": 16}, warps=8, stages=3),
}


@dataclass(frozen=True)
class TritonWeight(PatchEmbedWeight):
    """weight: [D, C·pt·ph·pw]; bias: [D] or None; dense, fp32."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def pack_patch_embed(weight: torch.Tensor, bias: torch.Tensor | None = None, *, target: Target) -> TritonWeight:
    check_pack(weight, bias)
    features, channels, pt, ph, pw = weight.shape
    rows = weight.to(target.device, torch.float32).flatten(1).contiguous()
    if bias is not None:
        bias = bias.to(target.device, torch.float32).contiguous()
    return TritonWeight((pt, ph, pw), channels, features, rows.device, rows, bias)


@checked
def patch_embed(
    x: torch.Tensor,
    weight: PatchEmbedWeight,
    grid: tuple[int, int, int],
    position: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    assert isinstance(weight, TritonWeight)
    batch, (t, h, w) = x.shape[0], grid
    tokens, columns = t * h * w, weight.out_features
    y = output_buffer(out, (batch, tokens, columns), x.dtype, x.device)
    if x.dtype.itemsize == 2:
        config = select_config("patch_embed", TILES, x.device)
    else:
        config = select_config("patch_embed/fp32", TILES_FP32, x.device)
    rows = batch * tokens
    launch(
        _patch_embed,
        (triton.cdiv(rows, config.blocks["ROWS"]) * triton.cdiv(columns, config.blocks["COLUMNS"]),),
        config,
        x=x,
        weight=weight.weight,
        bias=weight.bias,
        position=position,
        y=y,
        rows=rows,
        tokens=tokens,
        height=h,
        width=w,
        columns=columns,
        features=weight.weight.shape[1],
        x_b=x.stride(0),
        x_c=x.stride(1),
        x_t=x.stride(2),
        x_h=x.stride(3),
        x_w=x.stride(4),
        y_b=y.stride(0),
        y_s=y.stride(1),
        position_b=position.stride(0) if position is not None and position.ndim == 3 else 0,
        position_s=position.stride(-2) if position is not None else 0,
        position_d=position.stride(-1) if position is not None else 0,
        PT=weight.patch[0],
        PH=weight.patch[1],
        PW=weight.patch[2],
        VECTOR=_vector(x, weight.patch[2]),
    )
    return y


def _vector(x: torch.Tensor, pw: int) -> int:
    """How many values of a patch's row are contiguous and aligned to their number."""
    return math.gcd(pw, *x.stride()[:4]) if x.stride(4) == 1 else 1


# one build for every size of video; where its rows begin is in VECTOR
@triton.jit(do_not_specialize=["rows", "tokens", "height", "width", "x_b", "x_c", "x_t", "x_h"])
def _patch_embed(
    x,
    weight,
    bias,
    position,
    y,
    rows,
    tokens,
    height,
    width,
    columns,
    features,
    x_b,
    x_c,
    x_t,
    x_h,
    x_w,
    y_b,
    y_s,
    position_b,
    position_s,
    position_d,
    PT: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """height, width: of the grid of tokens. Neighbouring programs do the columns of one tile of rows."""
    across = tl.cdiv(columns, COLUMNS)
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    exists = n < columns
    mask = (row < rows)[:, None] & exists[None, :]
    # beyond the end the last one is repeated: its result is not stored
    row = tl.minimum(row, rows - 1)
    b, s = (row // tokens).to(tl.int64), row % tokens
    t, h, w = (s // width // height).to(tl.int64), (s // width % height).to(tl.int64), (s % width).to(tl.int64)
    x_rows = x + tl.multiple_of(b * x_b + t * (PT * x_t) + h * (PH * x_h) + w * (PW * x_w), VECTOR)[:, None]
    w_columns = weight + (tl.minimum(n, columns - 1).to(tl.int64) * features)[None, :]

    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, features, FEATURES):
        k = start + tl.arange(0, FEATURES)
        here = k < features
        i, j, m = k // (PW * PH) % PT, k // PW % PH, k % PW
        c = (k // (PW * PH * PT)).to(tl.int64)
        x_at = x_rows + (tl.multiple_of(c * x_c + i * x_t + j * x_h, VECTOR) + m * x_w)[None, :]
        patches = tl.load(x_at, mask=here[None, :], other=0.0)
        kernel = tl.load(w_columns + k[:, None], mask=here[:, None], other=0.0)
        value = _multiply(patches, kernel, value)

    if bias is not None:
        value = value + tl.load(bias + n, mask=exists)[None, :]
    if position is not None:
        at = position + (b * position_b + s * position_s)[:, None] + (n * position_d)[None, :]
        value = value + fp32(tl.load(at, mask=mask))
    tl.store(y + (b * y_b + s * y_s)[:, None] + n[None, :], cast(value, y.dtype.element_ty), mask=mask)


@triton.jit
def _multiply(a, w, acc):
    """acc + a·w to fp32's precision. a: [M, K]; w: [K, N] fp32."""
    if a.dtype.primitive_bitwidth >= 32:
        return dot(fp32(a), w, acc)
    else:
        # part i of a number begins 8·i bits down; a product of parts 24 bits down is lost in acc's rounding
        w0, w1, w2 = _parts(w)
        if a.dtype == tl.bfloat16:
            a0 = a
        else:
            tl.static_assert(a.dtype == tl.float16)
            a0, a1, _ = _parts(fp32(a))  # fp16 has no third part
            acc = dot(a1, w1, acc)
            acc = dot(a1, w0, acc)
        acc = dot(a0, w2, acc)
        acc = dot(a0, w1, acc)
        return dot(a0, w0, acc)


@triton.jit
def _parts(x):
    """fp32 as the sum of three bf16 numbers, the largest first; exact down to 2^-133."""
    high = cast(x, tl.bfloat16)
    rest = x - fp32(high)
    middle = cast(rest, tl.bfloat16)
    return high, middle, cast(rest - fp32(middle), tl.bfloat16)
