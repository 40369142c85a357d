"""`unpatchify` in Triton: a program turns a few tokens' features into rows of the video, read and written in runs."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kinema.ops.common import output_buffer
from kinema.ops.common.launch import Config, launch, select_config
from kinema.ops.unpatchify import PatchOrder
from kinema.ops.unpatchify.check import checked

# ELEMENTS: of a program. GROUPS: the most rows of the video, each of which gets `pw` values of every token.
TILES = {
    0: Config({"ELEMENTS": 512, "GROUPS": 16}),
    80: Config({"ELEMENTS": 4096, "GROUPS": 32}, warps=4, stages=1),
}


@checked
def unpatchify(
    x: torch.Tensor,
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
    order: PatchOrder,
    shape: tuple[int, int, int, int, int],
    out: torch.Tensor | None,
) -> torch.Tensor:
    (batch, channels, *_), tokens = shape, x.shape[1]
    (_, h, w), (pt, ph, pw) = grid, patch
    y = output_buffer(out, shape, x.dtype, x.device, contiguous=3)
    groups, columns = channels * pt * ph, triton.next_power_of_2(pw)
    table = select_config("unpatchify", TILES, x.device)
    block = min(triton.next_power_of_2(groups), table.blocks["GROUPS"])
    block_tokens = max(1, table.blocks["ELEMENTS"] // (block * columns))
    launch(
        _unpatchify,
        (triton.cdiv(batch * tokens, block_tokens), triton.cdiv(groups, block)),
        Config({"TOKENS": block_tokens, "GROUPS": block, "COLUMNS": columns}, table.warps, table.stages),
        x=x,
        y=y,
        rows=batch * tokens,
        tokens=tokens,
        height=h,
        width=w,
        x_b=x.stride(0),
        x_s=x.stride(1),
        x_f=x.stride(2),
        y_b=y.stride(0),
        y_c=y.stride(1),
        VECTOR=math.gcd(pw, y.stride(0), y.stride(1)),
        PATCH_FIRST=order == "patch_first",
        CHANNELS=channels,
        PT=pt,
        PH=ph,
        PW=pw,
    )
    return y


# one build for every size of video; where its rows begin is in VECTOR
@triton.jit(do_not_specialize=["rows", "tokens", "height", "width", "y_b", "y_c"])
def _unpatchify(
    x,
    y,
    rows,
    tokens,
    height,
    width,
    x_b,
    x_s,
    x_f,
    y_b,
    y_c,
    VECTOR: tl.constexpr,
    PATCH_FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    PT: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """height, width: of the grid of tokens. A group is a channel, a frame and a row of a patch: PW neighbours of y.

    VECTOR divides PW and the strides of y.
    """
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    b, s = (row // tokens).to(tl.int64), row % tokens
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = tl.arange(0, COLUMNS)
    real, exists, inside = row < rows, group < CHANNELS * PT * PH, column < PW

    # the last axis of a tile is the one that is contiguous in memory
    x_rows = x + (b * x_b + s.to(tl.int64) * x_s)[:, None, None]
    if PATCH_FIRST:
        c, i, j = group % CHANNELS, group // CHANNELS // PH, group // CHANNELS % PH
        feature = ((i * PH + j) * PW * CHANNELS + c)[None, None, :] + (column * CHANNELS)[None, :, None]
        mask = real[:, None, None] & inside[None, :, None] & exists[None, None, :]
        values = tl.load(x_rows + feature * x_f, mask=mask)  # [TOKENS, COLUMNS, GROUPS]
        values = tl.permute(values, (2, 0, 1))
    else:
        c, i, j = group // (PT * PH), group // PH % PT, group % PH
        feature = (group * PW)[None, :, None] + column[None, None, :]
        mask = real[:, None, None] & exists[None, :, None] & inside[None, None, :]
        values = tl.load(x_rows + feature * x_f, mask=mask)  # [TOKENS, GROUPS, COLUMNS]
        values = tl.permute(values, (1, 0, 2))

    t, h, w = s // width // height, s // width % height, s % width
    line = (t * PT)[None, :] + i[:, None]
    line = line * (height * PH) + (h * PH)[None, :] + j[:, None]
    line = line.to(tl.int64) * (width * PW) + (w * PW)[None, :]
    line += tl.multiple_of(b * y_b, VECTOR)[None, :] + tl.multiple_of(c.to(tl.int64) * y_c, VECTOR)[:, None]
    at = line[:, :, None] + column[None, None, :]
    tl.store(y + at, values, mask=exists[:, None, None] & real[None, :, None] & inside[None, None, :])
