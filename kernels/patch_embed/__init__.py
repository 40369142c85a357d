"""patch_embed: cut (t, h, w) patches out of a latent video and project each to a token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from kinema.ops.common import Implementation, Op, Packed, Target
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import triton_implementation


@dataclass(frozen=True)
class PatchEmbedWeight(Packed):
    """The projection in the layout of the implementation that packed it, on `device`; opaque to models."""

    patch: tuple[int, int, int]
    in_channels: int
    out_features: int
    device: torch.device


class PackPatchEmbed(Protocol):
    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, target: Target) -> PatchEmbedWeight:
        """weight: [D, C, pt, ph, pw], a convolution whose stride is its kernel; bias: [D]; both any float dtype.

        Kept in fp32 in every precision.
        """
        ...


class PatchEmbed(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        weight: PatchEmbedWeight,
        *,
        position: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """token(t, h, w) = W·patch(t, h, w) + b (+ position).

        x: [B, C, T, H, W], any strides; T, H, W divide by the patch (refused otherwise, never padded), and may be 0.
        position: [S, D] or [B, S, D], added. Tokens run T, then H, then W.
        Returns [B, S, D] with S = T/pt · H/ph · W/pw, in x's dtype, sums in fp32.
        """
        ...


def _result(x: torch.Tensor, weight: PatchEmbedWeight, **_: object) -> torch.Tensor:
    tokens = math.prod(size // patch for size, patch in zip(x.shape[2:], weight.patch, strict=True))
    return x.new_empty(x.shape[0], tokens, weight.out_features)


OP = Op(
    "patch_embed",
    ("patch_embed", "pack_patch_embed"),
    (
        triton_implementation("patch_embed"),
        cpu_implementation("patch_embed"),
        Implementation("reference", "kinema.ops.patch_embed.reference"),
    ),
    _result,
)
