"""The truth for `qk_norm_rope`."""

from __future__ import annotations

import torch

from kinema.ops.common import Rope, deliver, wide
from kinema.ops.norm_modulate.reference import norm_modulate
from kinema.ops.qk_norm_rope import HeadNorm


def qk_norm_rope(
    x: torch.Tensor,
    heads: int,
    *,
    norm: HeadNorm | None = None,
    rope: Rope | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    if x.shape[-1] % heads:
        raise ValueError(f"{x.shape[-1]} channels do not split into {heads} heads")
    h = wide(x)
    if norm is not None and norm.across_heads:
        h = norm_modulate(h, norm=norm.kind, eps=norm.eps, weight=norm.weight, bias=norm.bias)
    h = h.reshape(*h.shape[:-1], heads, -1).transpose(1, 2)
    if norm is not None and not norm.across_heads:
        h = norm_modulate(h, norm=norm.kind, eps=norm.eps, weight=norm.weight, bias=norm.bias)
    if rope is not None:
        h = rope.rotate(h)
    return deliver(h.to(x.dtype).contiguous(), out)
