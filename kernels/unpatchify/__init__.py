"""unpatchify: tokens back to a latent video, the inverse of patch_embed's gather."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from kinema.ops.common import Implementation, Op
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import triton_implementation

PatchOrder = Literal["patch_first", "channel_first"]


class Unpatchify(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        grid: tuple[int, int, int],
        patch: tuple[int, int, int],
        *,
        order: PatchOrder = "patch_first",
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each token's features are one (pt, ph, pw) patch of C channels.

        x: [B, S, pt·ph·pw·C] with S = T'·H'·W' of `grid`, which may have zeros. order: "patch_first" reads a token as
        (pt, ph, pw, C) (Wan), "channel_first" as (C, pt, ph, pw) (HunyuanVideo, CogVideoX).
        Returns [B, C, T'·pt, H'·ph, W'·pw], contiguous.
        """
        ...


def _result(x: torch.Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int], **_: object) -> torch.Tensor:
    (t, h, w), (pt, ph, pw) = grid, patch
    return x.new_empty(x.shape[0], x.shape[2] // (pt * ph * pw), t * pt, h * ph, w * pw)


OP = Op(
    "unpatchify",
    ("unpatchify",),
    (
        triton_implementation("unpatchify"),
        cpu_implementation("unpatchify"),
        Implementation("reference", "kinema.ops.unpatchify.reference"),
    ),
    _result,
)
