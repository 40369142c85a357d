"""`linear` by PyTorch's own matrix products: torch._scaled_mm of e4m3, torch._int_mm of int8, F.linear of the rest.

torch._scaled_mm multiplies e4m3 on tensor cores (from Ada on) with a scale per token and one per channel, adds the bias
and rounds to bf16 once. torch._int_mm gives whole numbers; their scales and the bias are passes of their own. So is
the rest of the epilogue of both. They take inputs and outputs of multiples of 16 features, which all of a transformer's
are. Everything else is the reference's F.linear, which is cuBLAS on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch

from kinema.ops.common import PRECISIONS, Quantized, QuantKind, Target, takes_the_rest
from kinema.ops.common.launch import architecture, is_hip
from kinema.ops.linear import Activation, LinearWeight, reference
from kinema.ops.linear.reference import ReferenceWeight, epilogue
from kinema.ops.quantize import OP as QUANTIZE

MULTIPLE = 16  # of features, on both sides
LEAST_ROWS = 17  # that torch._int_mm takes on a GPU
_STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True)
class NarrowWeight(ReferenceWeight):
    """A weight that is multiplied in 8 bits, rows dense. narrow_bias: the bias in bf16, as torch._scaled_mm adds it."""

    narrow_bias: torch.Tensor | None


def pack_linear(
    weight: torch.Tensor | Sequence[torch.Tensor],
    bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    gate_weight: torch.Tensor | None = None,
    gate_bias: torch.Tensor | None = None,
    target: Target,
) -> ReferenceWeight:
    packed = reference.pack_linear(weight, bias, gate_weight=gate_weight, gate_bias=gate_bias, target=target)
    kind = packed.quantize_activations
    if kind is None or packed.weight.dtype != _STORED[kind] or any(n % MULTIPLE for n in packed.weight.shape):
        return packed
    parts = {field.name: getattr(packed, field.name) for field in fields(packed)}
    parts["weight"] = packed.weight.contiguous()
    return NarrowWeight(**parts, narrow_bias=packed.bias.to(torch.bfloat16) if packed.bias is not None else None)


def linear(
    x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor],
    weight: LinearWeight,
    *,
    activation: Activation = "none",
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    if isinstance(x, tuple):
        x = torch.cat(x, dim=-1)
    if not (isinstance(weight, NarrowWeight) and _is_taken(x, weight)):
        return reference.linear(x, weight, activation=activation, gate=gate, residual=residual, out=out)
    dtype = weight.activations if isinstance(x, Quantized) else x.dtype
    given = x if isinstance(x, Quantized) else _quantized(x, weight)
    y = _product(given, weight, dtype).view(*given.shape[:-1], -1)
    return epilogue(y, weight, activation, gate, residual, dtype, out)


def _is_taken(x: torch.Tensor | Quantized, weight: NarrowWeight) -> bool:
    """Whether the product is there for this input: torch._scaled_mm gives bf16, torch._int_mm wants LEAST_ROWS."""
    rows = math.prod(x.shape[:-1])
    if isinstance(x, Quantized) and x.data.dtype != weight.weight.dtype:
        return False
    if weight.quantize_activations == "int8":
        return rows >= LEAST_ROWS
    return rows > 0 and (weight.activations if isinstance(x, Quantized) else x.dtype) == torch.bfloat16


def _product(x: Quantized, weight: NarrowWeight, dtype: torch.dtype) -> torch.Tensor:
    """x·Wᵀ + b as [B·S, rows] in `dtype`."""
    rows, columns = x.data.reshape(-1, weight.in_features), weight.weight.t()
    scale = x.scale.reshape(-1, 1)
    assert weight.scale is not None
    if weight.quantize_activations == "int8":
        y = torch._int_mm(rows, columns).float().mul_(scale).mul_(weight.scale)
        return (y.add_(weight.bias) if weight.bias is not None else y).to(dtype)
    # the fast sums of Ada and Hopper have fewer bits than fp32
    return torch._scaled_mm(
        rows, columns, scale, weight.scale[None], bias=weight.narrow_bias, out_dtype=dtype, use_fast_accum=False
    )


def _quantized(x: torch.Tensor, weight: NarrowWeight) -> Quantized:
    kind = weight.quantize_activations
    assert kind is not None
    made: Quantized = _quantizer(x.device, kind, architecture(x.device), is_hip()).quantize(x, kind)
    return made


@lru_cache(maxsize=16)
def _quantizer(device: torch.device, kind: QuantKind, arch: int, hip: bool) -> Any:
    """The op's best: Triton's, in one pass, where it runs."""
    return takes_the_rest(QUANTIZE, Target(device, PRECISIONS["cuda"][kind])).load()
