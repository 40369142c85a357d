"""The truth for `qk_norm_rope`."""

from __future__ import annotations

import torch

from kinema.ops.common import Rope, upcast, write_result
from kinema.ops.norm_modulate.reference import normed
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.qk_norm_rope.check import checked


@checked
def qk_norm_rope(
    x: torch.Tensor, heads: int, norm: HeadNorm | None, rope: Rope | None, out: torch.Tensor | None
) -> torch.Tensor:
    h = upcast(x)
    if norm is not None and norm.across_heads:
        h = _normed(h.reshape(*h.shape[:2], norm.operands, -1), norm)
    h = h.reshape(*h.shape[:2], heads, -1)
    if norm is not None and not norm.across_heads:
        h = _normed(h.reshape(*h.shape[:2], norm.operands, -1, h.shape[-1]), norm).flatten(2, 3)
    h = h.transpose(1, 2)
    if rope is not None:
        h = rope.rotate(h)
    return write_result(h.to(x.dtype).contiguous(), out)


def _normed(h: torch.Tensor, norm: HeadNorm) -> torch.Tensor:
    """h: [B, S, operands, …] → the same, each operand with its own weights."""
    if norm.operands == 1:
        return normed(h, norm.kind, norm.eps, norm.weight, norm.bias)
    parts = (t.chunk(norm.operands) if t is not None else [None] * norm.operands for t in (norm.weight, norm.bias))
    operands = zip(h.unbind(2), *parts, strict=True)
    return torch.stack([normed(each, norm.kind, norm.eps, weight, bias) for each, weight, bias in operands], dim=2)
