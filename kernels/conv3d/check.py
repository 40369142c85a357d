"""What every implementation of `conv3d` refuses, and its result where there are no frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Literal

import torch

from kinema.ops.common.arguments import FLOATS, check_floats, check_out, misfit
from kinema.ops.common.overlap import has_internal_overlap, share
from kinema.ops.conv3d import Conv3d, Conv3dWeight


def checked(run: Callable[..., torch.Tensor]) -> Conv3d:
    """`run`, called only with valid arguments that are not empty, the result's shape, and no cache that is unused."""

    @wraps(run)
    def conv3d(
        x: torch.Tensor,
        weight: Conv3dWeight,
        *,
        norm: torch.Tensor | None = None,
        activation: Literal["none", "silu"] = "none",
        upsample: int = 1,
        cache: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        device = weight.device
        shape = _result_shape(x, weight, upsample)
        if activation not in ("none", "silu"):
            raise ValueError(f"unknown activation {activation!r}: wanted 'none' or 'silu'")
        if norm is not None:
            check_floats("norm", norm, x.shape[1:2], device)
        if not weight.history:
            cache = None
        if cache is not None:
            _check_cache(cache, x, weight.history, upsample)
        if residual is not None:
            check_floats("residual", residual, shape, device)
        if out is not None:
            check_out(out, shape, x.dtype, device, apart=(x, cache, norm), onto=(residual,))
        if not x.numel():
            return torch.empty(shape, dtype=x.dtype, device=device) if out is None else out
        return run(
            x,
            weight,
            shape,
            norm=norm,
            activation=activation,
            upsample=upsample,
            cache=cache,
            residual=residual,
            out=out,
        )

    return conv3d


def _result_shape(x: torch.Tensor, weight: Conv3dWeight, upsample: int) -> tuple[int, int, int, int, int]:
    """The result's shape [B, Cout, T', H', W']; ValueError unless x fits the weight."""
    device = weight.device
    if x.ndim != 5 or x.shape[1] != weight.in_channels or x.dtype not in FLOATS or x.device != device:
        raise misfit("x", x, f"floats [B, {weight.in_channels} channels, T, H, W] on {device}, as the weight")
    if upsample < 1:
        raise ValueError(f"upsample is {upsample}, wanted at least 1")
    batch, _, frames, height, width = x.shape
    (kt, kh, kw), (st, sh, sw) = weight.kernel, weight.stride
    top, bottom, left, right = weight.padding
    # no frames give none
    t = (weight.history + frames - kt) // st + 1 if frames else 0
    h = (height * upsample + top + bottom - kh) // sh + 1
    w = (width * upsample + left + right - kw) // sw + 1
    if not height * width or h < 1 or w < 1 or (t < 1 and frames):
        raise ValueError(f"x is {tuple(x.shape)}, too small for a kernel of {weight.kernel}")
    return batch, weight.out_channels, t, h, w


def _check_cache(cache: torch.Tensor, x: torch.Tensor, history: int, upsample: int) -> None:
    batch, channels, _, height, width = x.shape
    wanted = (batch, channels, history, height * upsample, width * upsample)
    if cache.shape != wanted or cache.dtype not in FLOATS or cache.device != x.device:
        raise misfit("cache", cache, f"floats {wanted} on {x.device}: {history} past frames of x")
    if x.is_meta:
        return
    if has_internal_overlap(cache):
        raise ValueError(f"cache has strides {cache.stride()}, wanted a place of its own for each value")
    if share(cache, x):
        raise ValueError("cache shares memory with x, wanted memory of its own: it is overwritten")


def kernel_and_padding(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int, int] | None,
) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """The kernel as [Cout, Cin, kt, kh, kw] and its padding; ValueError unless the arguments match."""
    kernel = weight.unsqueeze(2) if weight.ndim == 4 else weight
    if kernel.ndim != 5 or 0 in kernel.shape or not kernel.is_floating_point():
        raise misfit("weight", weight, "floats [Cout, Cin, kt, kh, kw] or [Cout, Cin, kh, kw]")
    if bias is not None and (bias.shape != kernel.shape[:1] or not bias.is_floating_point()):
        raise misfit("bias", bias, f"floats [{kernel.shape[0]}], one for each output channel")
    if padding is None:
        rows, columns = ((k - 1) // 2 for k in kernel.shape[3:])
        padding = (rows, rows, columns, columns)
    if len(stride) != 3 or min(stride) < 1 or len(padding) != 4 or min(padding) < 0:
        raise ValueError(
            f"strides {stride} and padding {padding}, wanted three of at least 1 and (top, bottom, left, right) from 0"
        )
    return kernel, padding
