"""What every implementation of `unpatchify` refuses, and its result where there are no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import get_args

import torch

from kinema.ops.common.arguments import FLOATS, check_out, misfit
from kinema.ops.unpatchify import PatchOrder, Unpatchify

ORDERS = get_args(PatchOrder)


def checked(run: Callable[..., torch.Tensor]) -> Unpatchify:
    """`run`, called only with valid arguments that are not empty, and with the result's shape."""

    @wraps(run)
    def unpatchify(
        x: torch.Tensor,
        grid: tuple[int, int, int],
        patch: tuple[int, int, int],
        *,
        order: PatchOrder = "patch_first",
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if x.ndim != 3 or x.dtype not in FLOATS:
            raise misfit("x", x, "floats [B, S, features]")
        batch, tokens, features = x.shape
        (t, h, w), (pt, ph, pw) = grid, patch
        values = pt * ph * pw
        if min(grid) < 0 or min(patch) < 1 or tokens != t * h * w or features < 1 or features % values:
            raise ValueError(f"tokens {tuple(x.shape)} do not fill a grid of {grid} with patches of {patch}")
        if order not in ORDERS:
            raise ValueError(f"unknown order {order!r}: wanted 'patch_first' or 'channel_first'")
        shape = (batch, features // values, t * pt, h * ph, w * pw)
        if out is not None:
            check_out(out, shape, x.dtype, x.device, apart=(x,))
        if x.numel():
            return run(x, grid, patch, order, shape, out)
        return torch.empty(shape, dtype=x.dtype, device=x.device) if out is None else out

    return unpatchify
