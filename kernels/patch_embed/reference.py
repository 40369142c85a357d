"""The truth for `patch_embed`: gather the patches, then one matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kinema.ops.common import Target, write_result
from kinema.ops.patch_embed import PatchEmbedWeight
from kinema.ops.patch_embed.check import check_pack, checked


@dataclass(frozen=True)
class ReferenceWeight(PatchEmbedWeight):
    """weight: [D, C, pt, ph, pw]; bias: [D] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def pack_patch_embed(weight: torch.Tensor, bias: torch.Tensor | None = None, *, target: Target) -> ReferenceWeight:
    check_pack(weight, bias)
    # fp32 always: the embedding is a thousandth of the work, and published models keep it in fp32
    weight = weight.to(target.device, torch.promote_types(weight.dtype, torch.float32))
    bias = bias.to(weight.device, weight.dtype) if bias is not None else None
    features, channels, pt, ph, pw = weight.shape
    return ReferenceWeight((pt, ph, pw), channels, features, weight.device, weight, bias)


@checked
def patch_embed(
    x: torch.Tensor,
    weight: PatchEmbedWeight,
    grid: tuple[int, int, int],
    position: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    assert isinstance(weight, ReferenceWeight)
    batch, channels = x.shape[:2]
    (t, h, w), (pt, ph, pw) = grid, weight.patch
    patches = x.reshape(batch, channels, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    tokens = F.linear(patches.flatten(4).flatten(1, 3).to(weight.weight.dtype), weight.weight.flatten(1), weight.bias)
    if position is not None:
        tokens = tokens + position
    return write_result(tokens.to(x.dtype), out)
