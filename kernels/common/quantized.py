"""Activations in 8 bits with one scale per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

QuantKind = Literal["fp8", "int8"]


@dataclass(frozen=True)
class Quantized:
    """x ≈ data · scale.

    data: [..., C], float8_e4m3fn or int8. scale: [..., 1], fp32, one per token.
    """

    data: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """data · scale as [..., C] in `dtype`."""
        return (self.data.to(torch.float32) * self.scale).to(dtype)
