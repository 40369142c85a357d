"""The truth for `norm_modulate`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kinema.ops.common import Quantized, QuantKind, by_group, upcast, write_result
from kinema.ops.common.arguments import unchecked
from kinema.ops.norm_modulate import Norm, NormKind
from kinema.ops.norm_modulate.check import checked
from kinema.ops.quantize.reference import quantize as quantize_tokens


@checked
def norm_modulate(
    x: torch.Tensor, norm: Norm, quantize: QuantKind | None, out: torch.Tensor | None
) -> torch.Tensor | Quantized:
    h = normed(upcast(x), norm.kind, norm.eps, norm.weight, norm.bias)
    if norm.scale is not None:
        grouped, s = by_group(h, norm.scale)
        h = (grouped * (1 + s.to(h.dtype))).flatten(1, 2)
    if norm.shift is not None:
        grouped, s = by_group(h, norm.shift)
        h = (grouped + s.to(h.dtype)).flatten(1, 2)
    if quantize is not None:
        quantized: Quantized = unchecked(quantize_tokens)(h, quantize)
        return quantized
    return write_result(h.to(x.dtype), out)


def normed(
    h: torch.Tensor, kind: NormKind, eps: float, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """The norm over h's last axis, with weight and bias, in h's dtype."""
    w = weight.to(h.dtype) if weight is not None else None
    b = bias.to(h.dtype) if bias is not None else None
    if kind == "layer":
        return F.layer_norm(h, h.shape[-1:], w, b, eps)
    h = F.rms_norm(h, h.shape[-1:], w, eps)
    return h if b is None else h + b
