"""qk_norm_rope: queries and keys, from a projection's output to what attention reads, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from kinema.ops.common import Implementation, Op, Rope
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import triton_implementation


@dataclass(frozen=True)
class HeadNorm:
    """A norm of queries or keys.

    across_heads: statistics over all N·D channels of a token and weight [N·D] (Wan), else over each head's D
    channels and weight [D] (HunyuanVideo, CogVideoX). weight, bias: fp32 or x's dtype.
    operands: how many share N between them, each with statistics and weights of its own, one after the other in
    weight and bias. 2 for the queries and keys of a layer: across heads statistics over N·D/2 channels and weight
    [N·D], else weight [2·D].
    """

    kind: Literal["rms", "layer"]
    eps: float
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    across_heads: bool = False
    operands: int = 1


class QkNormRope(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        heads: int,
        *,
        norm: HeadNorm | None = None,
        rope: Rope | None = None,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Split heads, normalise, rotate, and write in attention's layout.

        One call takes the queries and keys of a fused projection, which lie beside each other in x (`norm.operands`).
        Operands that are treated differently have calls of their own: a key that goes to a cache is normalised and
        left un-rotated (rope=None), and in joint attention each segment (video, text) has its own norm weights. `rope`
        may cover a range of the tokens only (text tokens in a joint sequence do not rotate).
        x: [B, S, N·D], N heads of all operands, any stride over B and S. Returns [B, N, S, D] in `dtype` (x's, which
        None means, or bf16), each head contiguous over S and D; computed in fp32. `out` may have any stride over B and
        N (a range of a cache's slots), and shares no memory with x. S and B may be 0.
        """
        ...


def _result(x: torch.Tensor, heads: int, *, dtype: torch.dtype | None = None, **_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], heads, x.shape[1], x.shape[2] // heads, dtype=dtype)


OP = Op(
    "qk_norm_rope",
    ("qk_norm_rope",),
    (
        triton_implementation("qk_norm_rope"),
        cpu_implementation("qk_norm_rope"),
        Implementation("reference", "kinema.ops.qk_norm_rope.reference"),
    ),
    _result,
)
