"""The truth for `quantize`."""

from __future__ import annotations

import torch

from kinema.ops.common import FP8_MAX, INT8_MAX, Quantized, QuantKind
from kinema.ops.quantize.check import checked


@checked
def quantize(x: torch.Tensor, kind: QuantKind) -> Quantized:
    limit = FP8_MAX if kind == "fp8" else INT8_MAX
    x = x.float()
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
    scale = largest / torch.full_like(largest, limit)  # by a number, a GPU would multiply by its rounded inverse
    scaled = (x / scale).clamp(-limit, limit)
    if kind == "fp8":
        return Quantized(scaled.to(torch.float8_e4m3fn), scale)
    return Quantized(scaled.round().to(torch.int8), scale)
