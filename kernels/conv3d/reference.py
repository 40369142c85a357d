"""The truth for `conv3d`: norm, SiLU, upsample, past frames, pad and convolve, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from kinema.ops.common import Target, upcast, write_result
from kinema.ops.conv3d import Conv3dWeight
from kinema.ops.conv3d.check import checked, kernel_and_padding

# On a CPU, torch runs F.conv3d of a single clip with Cin·T·H up to this value as a naive loop.
NAIVE_LIMIT = 20480


@dataclass(frozen=True)
class ReferenceWeight(Conv3dWeight):
    """weight: [Cout, Cin, kt, kh, kw]; bias: [Cout] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def pack_conv3d(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] | None = None,
    target: Target,
) -> ReferenceWeight:
    weight, padding = kernel_and_padding(weight, bias, stride, padding)
    # fp32 always: published VAEs are decoded in fp32, and their weights are small
    weight = weight.to(target.device, torch.promote_types(weight.dtype, torch.float32))
    bias = bias.to(weight.device, weight.dtype) if bias is not None else None
    cout, cin, kt, kh, kw = weight.shape
    return ReferenceWeight(cin, cout, (kt, kh, kw), stride, padding, weight.device, weight, bias)


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
    assert isinstance(weight, ReferenceWeight)
    h = _channels_last(x)
    if norm is not None:
        length = torch.linalg.vector_norm(upcast(h), dim=1, keepdim=True).clamp_min(1e-12)
        gain = norm.to(length.dtype).view(-1, 1, 1, 1)
        h = (upcast(h) * (weight.in_channels**0.5 / length) * gain).to(x.dtype)
    if activation == "silu":
        h = F.silu(h)
    if upsample > 1:
        images = F.interpolate(h.transpose(1, 2).flatten(0, 1), scale_factor=upsample, mode="nearest-exact")
        h = images.view(x.shape[0], x.shape[2], *images.shape[1:]).transpose(1, 2)
    if weight.history:
        h = _with_past(h, weight.history, cache)
    top, bottom, left, right = weight.padding
    if top != bottom or left != right:
        h = F.pad(h, (left, right, top, bottom))
        top = left = 0
    y = _channels_last(_convolve(h.to(weight.weight.dtype), weight, (top, left))).to(x.dtype)
    if residual is not None:
        y = y + residual
    return write_result(y, out)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """x [B, C, T, H, W] with channels innermost in memory, where norms and convolutions are several times faster.

    Strides of axes of size 1 are set too: torch takes x for channels-last only if they fit.
    """
    last = x.movedim(1, -1)
    return last.reshape(-1).view(last.shape).movedim(-1, 1)


def _with_past(h: torch.Tensor, history: int, cache: torch.Tensor | None) -> torch.Tensor:
    """h [B, C, T, H, W] after its `history` past frames; the last frames go back to the cache."""
    if cache is None:
        return F.pad(h, (0, 0, 0, 0, history, 0))
    h = torch.cat((cache.to(h.dtype), h), dim=2)
    cache.copy_(h[:, :, -history:])
    return h


def _convolve(h: torch.Tensor, weight: ReferenceWeight, padding: tuple[int, int]) -> torch.Tensor:
    """F.conv3d without padding in time; where torch would be naive, its time taps become channels of images."""
    batch, channels, frames, height, _ = h.shape
    if h.device.type == "cuda":
        known = torch.backends.cudnn
        # fp32 means fp32: by default cuDNN rounds its inputs to tf32
        with known.flags(
            enabled=known.enabled, benchmark=known.benchmark, deterministic=known.deterministic, allow_tf32=False
        ):
            return F.conv3d(h, weight.weight, weight.bias, stride=weight.stride, padding=(0, *padding))
    if h.device.type != "cpu" or batch > 1 or channels * frames * height > NAIVE_LIMIT:
        return F.conv3d(h, weight.weight, weight.bias, stride=weight.stride, padding=(0, *padding))
    taps, step = weight.kernel[0], weight.stride[0]
    last = frames - taps
    images = h.squeeze(0).transpose(0, 1)  # [T, Cin, H, W]
    images = torch.cat([images[tap : last + tap + 1 : step] for tap in range(taps)], dim=1)
    kernel = weight.weight.transpose(1, 2).flatten(1, 2)  # [Cout, taps·Cin, kh, kw]
    y = F.conv2d(images, kernel, weight.bias, stride=weight.stride[1:], padding=padding)
    return y.unsqueeze(0).transpose(1, 2)
