"""quantize: activations to 8 bits with one scale per token."""

from __future__ import annotations

from typing import Protocol

import torch

from kinema.ops.common import Implementation, Op, Quantized, QuantKind
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import quantize_unsupported, triton_implementation


class Quantize(Protocol):
    def __call__(self, x: torch.Tensor, kind: QuantKind) -> Quantized:
        """data = x / scale with scale = max(max|x|, 1e-12) / limit over a token's channels.

        limit: 448 for fp8 e4m3, 127 for int8. x: [..., C], any stride over the leading axes, any of which may be 0.
        Returns data [..., C] rounded to nearest even (saturating) and scale [..., 1] fp32; an all-zero token
        gets data 0 and a tiny positive scale.
        """
        ...


OP = Op(
    "quantize",
    ("quantize",),
    (
        triton_implementation("quantize", quantize_unsupported),
        cpu_implementation("quantize"),
        Implementation("reference", "kinema.ops.quantize.reference"),
    ),
)
