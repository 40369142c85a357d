"""The truth for `unpatchify`: reshape and permute."""

from __future__ import annotations

import math

import torch

from kinema.ops.common import deliver
from kinema.ops.unpatchify import PatchOrder


def unpatchify(
    x: torch.Tensor,
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
    *,
    order: PatchOrder = "patch_first",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    batch, tokens, features = x.shape
    if tokens != math.prod(grid) or features % math.prod(patch):
        raise ValueError(f"tokens {tuple(x.shape)} do not fill a grid of {grid} with patches of {patch}")
    (t, h, w), (pt, ph, pw) = grid, patch
    if order == "patch_first":
        x = x.reshape(batch, t, h, w, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    elif order == "channel_first":
        x = x.reshape(batch, t, h, w, -1, pt, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    else:
        raise ValueError(f"unknown order {order!r}: wanted 'patch_first' or 'channel_first'")
    return deliver(x.reshape(batch, -1, t * pt, h * ph, w * pw).contiguous(), out)
