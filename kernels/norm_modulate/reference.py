"""The truth for `norm_modulate`."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F

from kinema.ops.common import Quantized, QuantKind, by_group, deliver, wide
from kinema.ops.norm_modulate import NormKind
from kinema.ops.quantize.reference import quantize as quantize_tokens


@overload
def norm_modulate(
    x: torch.Tensor,
    *,
    norm: NormKind = ...,
    eps: float,
    weight: torch.Tensor | None = ...,
    bias: torch.Tensor | None = ...,
    scale: torch.Tensor | None = ...,
    shift: torch.Tensor | None = ...,
    quantize: None = ...,
    out: torch.Tensor | None = ...,
) -> torch.Tensor: ...


@overload
def norm_modulate(
    x: torch.Tensor,
    *,
    norm: NormKind = ...,
    eps: float,
    weight: torch.Tensor | None = ...,
    bias: torch.Tensor | None = ...,
    scale: torch.Tensor | None = ...,
    shift: torch.Tensor | None = ...,
    quantize: QuantKind,
    out: None = ...,
) -> Quantized: ...


def norm_modulate(
    x: torch.Tensor,
    *,
    norm: NormKind = "layer",
    eps: float,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    quantize: QuantKind | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor | Quantized:
    if quantize is not None and out is not None:
        raise ValueError("quantize returns new tensors: out must be None")
    h = wide(x)
    w = weight.to(h.dtype) if weight is not None else None
    if norm == "layer":
        h = F.layer_norm(h, h.shape[-1:], w, bias.to(h.dtype) if bias is not None else None, eps)
    elif norm == "rms":
        h = F.rms_norm(h, h.shape[-1:], w, eps)
        if bias is not None:
            h = h + bias.to(h.dtype)
    else:
        raise ValueError(f"unknown norm {norm!r}: wanted 'layer' or 'rms'")
    if scale is not None:
        grouped, s = by_group(h, scale)
        h = (grouped * (1 + s.to(h.dtype))).flatten(1, 2)
    if shift is not None:
        grouped, s = by_group(h, shift)
        h = (grouped + s.to(h.dtype)).flatten(1, 2)
    if quantize is not None:
        return quantize_tokens(h, quantize)
    return deliver(h.to(x.dtype), out)
