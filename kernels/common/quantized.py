"""Activations in 8 bits with one scale per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from kinema.ops.common.arguments import misfit

QuantKind = Literal["fp8", "int8"]
KINDS = get_args(QuantKind)


@dataclass(frozen=True)
class Quantized:
    """x ≈ data · scale.

    data: [..., C], float8_e4m3fn or int8. scale: [..., 1], fp32, one per token.
    """

    data: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def empty(shape: Sequence[int], kind: QuantKind, device: torch.device) -> Quantized:
        """Uninitialised, for an x [..., C] of this shape."""
        dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
        scale = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
        return Quantized(torch.empty(shape, dtype=dtype, device=device), scale)

    def check(self) -> None:
        """ValueError unless data and scale are of these formats, fit each other and lie on one device."""
        if self.data.dtype not in (torch.float8_e4m3fn, torch.int8):
            raise misfit("quantised data", self.data, "float8_e4m3fn or int8")
        wanted = (*self.data.shape[:-1], 1)
        if self.scale.shape != wanted or self.scale.dtype != torch.float32 or self.scale.device != self.data.device:
            raise misfit("the scale of quantised data", self.scale, f"torch.float32 {wanted} on {self.data.device}")

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """data · scale as [..., C] in `dtype`."""
        return (self.data.to(torch.float32) * self.scale).to(dtype)
