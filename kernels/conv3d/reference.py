"""The truth for `conv3d`: norm, SiLU, upsample, pad and F.conv3d, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from kinema.ops.common import Target, deliver, wide
from kinema.ops.conv3d import Conv3dWeight


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
    if weight.ndim == 4:
        weight = weight.unsqueeze(2)
    # fp32 always: published VAEs are decoded in fp32, and their weights are small
    weight = weight.to(target.device, torch.promote_types(weight.dtype, torch.float32))
    bias = bias.to(weight.device, weight.dtype) if bias is not None else None
    cout, cin, kt, kh, kw = weight.shape
    if padding is None:
        padding = ((kh - 1) // 2, (kh - 1) // 2, (kw - 1) // 2, (kw - 1) // 2)
    return ReferenceWeight(cin, cout, (kt, kh, kw), stride, padding, weight, bias)


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
    assert isinstance(weight, ReferenceWeight)
    h = x
    if norm is not None:
        gain = norm.to(wide(h).dtype).view(-1, 1, 1, 1) * weight.in_channels**0.5
        h = (F.normalize(wide(h), dim=1) * gain).to(x.dtype)
    if activation == "silu":
        h = F.silu(h)
    if upsample > 1:
        h = h.repeat_interleave(upsample, dim=3).repeat_interleave(upsample, dim=4)
    if weight.history:
        past = cache if cache is not None else h.new_zeros(*h.shape[:2], weight.history, *h.shape[3:])
        if past.shape != (*h.shape[:2], weight.history, *h.shape[3:]):
            raise ValueError(f"cache {tuple(past.shape)} does not hold {weight.history} frames of {tuple(h.shape)}")
        h = torch.cat((past.to(h.dtype), h), dim=2)
        if cache is not None:
            cache.copy_(h[:, :, -weight.history :])
    top, bottom, left, right = weight.padding
    if top == bottom and left == right:
        pad = (0, top, left)
    else:
        h = F.pad(h, (left, right, top, bottom))
        pad = (0, 0, 0)
    y = F.conv3d(h.to(weight.weight.dtype), weight.weight, weight.bias, stride=weight.stride, padding=pad).to(x.dtype)
    if residual is not None:
        y = residual + y
    return deliver(y, out)
