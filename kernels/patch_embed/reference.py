"""The truth for `patch_embed`: gather the patches, then one matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kinema.ops.common import Target, deliver
from kinema.ops.patch_embed import PatchEmbedWeight


@dataclass(frozen=True)
class ReferenceWeight(PatchEmbedWeight):
    """weight: [D, C, pt, ph, pw]; bias: [D] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def pack_patch_embed(weight: torch.Tensor, bias: torch.Tensor | None = None, *, target: Target) -> ReferenceWeight:
    # fp32 always: the embedding is a thousandth of the work, and published models keep it wide
    weight = weight.to(target.device, torch.promote_types(weight.dtype, torch.float32))
    bias = bias.to(weight.device, weight.dtype) if bias is not None else None
    features, channels, pt, ph, pw = weight.shape
    return ReferenceWeight((pt, ph, pw), channels, features, weight, bias)


def patch_embed(
    x: torch.Tensor,
    weight: PatchEmbedWeight,
    *,
    position: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    assert isinstance(weight, ReferenceWeight)
    batch, channels, *size = x.shape
    if channels != weight.in_channels or any(n % p for n, p in zip(size, weight.patch, strict=True)):
        raise ValueError(
            f"cannot cut {tuple(x.shape)} [B, C, T, H, W] into patches of {weight.patch}: "
            f"wanted {weight.in_channels} channels and sizes that divide"
        )
    pt, ph, pw = weight.patch
    t, h, w = (n // p for n, p in zip(size, weight.patch, strict=True))
    patches = x.reshape(batch, channels, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    tokens = F.linear(patches.flatten(4).flatten(1, 3).to(weight.weight.dtype), weight.weight.flatten(1), weight.bias)
    if position is not None:
        tokens = tokens + position
    return deliver(tokens.to(x.dtype), out)
