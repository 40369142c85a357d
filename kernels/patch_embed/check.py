"""What every implementation of `patch_embed` refuses, and its result where there are no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

from kinema.ops.common.arguments import FLOATS, check_floats, check_out, misfit
from kinema.ops.patch_embed import PatchEmbed, PatchEmbedWeight


def checked(run: Callable[..., torch.Tensor]) -> PatchEmbed:
    """`run`, called only with valid arguments that are not empty, and with the grid of tokens (T', H', W')."""

    @wraps(run)
    def patch_embed(
        x: torch.Tensor,
        weight: PatchEmbedWeight,
        *,
        position: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        device = weight.device
        if x.ndim != 5 or x.dtype not in FLOATS or x.device != device:
            raise misfit("x", x, f"floats [B, C, T, H, W] on {device}, as the weight")
        batch, channels, t, h, w = x.shape
        pt, ph, pw = weight.patch
        if channels != weight.in_channels or t % pt or h % ph or w % pw:
            raise ValueError(
                f"cannot cut {tuple(x.shape)} [B, C, T, H, W] into patches of {weight.patch}: "
                f"wanted {weight.in_channels} channels and sizes that divide"
            )
        grid = (t // pt, h // ph, w // pw)
        shape = (batch, grid[0] * grid[1] * grid[2], weight.out_features)
        if position is not None:
            check_floats("position", position, shape if position.ndim == 3 else shape[1:], device)
        if out is not None:
            check_out(out, shape, x.dtype, device, apart=(x, position))
        if x.numel():
            return run(x, weight, grid, position, out)
        return torch.empty(shape, dtype=x.dtype, device=device) if out is None else out

    return patch_embed


def check_pack(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """ValueError unless this is a convolution's kernel [D, C, pt, ph, pw] with a bias [D]."""
    if weight.ndim != 5 or 0 in weight.shape or not weight.is_floating_point():
        raise misfit("weight", weight, "floats [D, C, pt, ph, pw]")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_floating_point()):
        raise misfit("bias", bias, f"floats [{weight.shape[0]}], as many as the weight has features")
