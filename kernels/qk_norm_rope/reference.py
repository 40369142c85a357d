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
        h = normed(h, norm.kind, norm.eps, norm.weight, norm.bias)
    h = h.reshape(*h.shape[:-1], heads, -1).transpose(1, 2)
    if norm is not None and not norm.across_heads:
        h = normed(h, norm.kind, norm.eps, norm.weight, norm.bias)
    if rope is not None:
        h = rope.rotate(h)
    return write_result(h.to(x.dtype).contiguous(), out)
