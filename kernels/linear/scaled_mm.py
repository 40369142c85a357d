"""`linear` by PyTorch's own matrix products: torch._scaled_mm for e4m3, torch._int_mm for int8, F.linear otherwise.

torch._scaled_mm multiplies e4m3 on tensor cores (from Ada on) with a scale per token and one per channel, adds the bias
and rounds to bf16 once. torch._int_mm returns integers; their scales and the bias are separate passes. So is the rest
of the epilogue of both. They need multiples of 16 input and output features, which all of a transformer's linears have.
Everything else is the reference's F.linear, which is cuBLAS on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch

from kinema.ops.common import Op, Precision, Quantized, QuantKind, Target, fallback_for
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.launch import architecture, is_hip
from kinema.ops.linear import Activation, LinearWeight, reference
from kinema.ops.linear.check import checked
from kinema.ops.linear.reference import ReferenceWeight, epilogue, project, source
from kinema.ops.norm_modulate import OP as NORM_MODULATE
from kinema.ops.norm_modulate import Norm
from kinema.ops.quantize import OP as QUANTIZE

MULTIPLE = 16  # of input and of output features
LEAST_ROWS = 17  # the fewest that torch._int_mm takes on a GPU
_STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True)
class QuantizedWeight(ReferenceWeight):
    """A weight that is multiplied in 8 bits, rows dense. bias_bf16: the bias as torch._scaled_mm adds it."""

    bias_bf16: torch.Tensor | None


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
    return QuantizedWeight(**parts, bias_bf16=packed.bias.to(torch.bfloat16) if packed.bias is not None else None)


@checked
def linear(
    x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor],
    weight: LinearWeight,
    *,
    norm: Norm | None,
    activation: Activation,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    assert isinstance(weight, ReferenceWeight)
    given, dtype = source(x, weight, norm, _norm_modulate, _quantize)
    if isinstance(weight, QuantizedWeight) and isinstance(given, Quantized) and _is_taken(given, weight, dtype):
        y = _product(given, weight, dtype).view(*given.shape[:-1], -1)
    else:
        y = project(given, weight, dtype)
    return epilogue(y, weight, activation, gate, residual, dtype, out)


def _is_taken(x: Quantized, weight: QuantizedWeight, dtype: torch.dtype) -> bool:
    """Whether the 8-bit product supports this input: torch._scaled_mm gives bf16, torch._int_mm needs LEAST_ROWS."""
    rows = math.prod(x.shape[:-1])
    if x.data.dtype != weight.weight.dtype:
        return False
    if weight.quantize_activations == "int8":
        return rows >= LEAST_ROWS
    return rows > 0 and dtype == torch.bfloat16


def _product(x: Quantized, weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """x·Wᵀ + b as [B·S, rows] in `dtype`."""
    rows, columns = x.data.reshape(-1, weight.in_features), weight.weight.t()
    scale = x.scale.reshape(-1, 1)
    assert weight.scale is not None
    if weight.quantize_activations == "int8":
        y = torch._int_mm(rows, columns).float().mul_(scale).mul_(weight.scale)
        return (y.add_(weight.bias) if weight.bias is not None else y).to(dtype)
    # the fast sums of Ada and Hopper have fewer bits than fp32
    return torch._scaled_mm(
        rows, columns, scale, weight.scale[None], bias=weight.bias_bf16, out_dtype=dtype, use_fast_accum=False
    )


def _quantize(x: torch.Tensor, kind: QuantKind) -> Quantized:
    made: Quantized = unchecked(_best(QUANTIZE, x, kind).quantize)(x, kind)
    return made


def _norm_modulate(x: torch.Tensor, norm: Norm, quantize: QuantKind | None, out: None) -> Any:
    return unchecked(_best(NORM_MODULATE, x, quantize).norm_modulate)(x, norm, quantize, out)


def _best(op: Op, x: torch.Tensor, kind: QuantKind | None) -> Any:
    """The op's best implementation for x: Triton's, in one pass, where it runs."""
    return _found(op, x.device, x.dtype, kind, architecture(x.device), is_hip())


@lru_cache(maxsize=64)
def _found(op: Op, device: torch.device, dtype: torch.dtype, kind: QuantKind | None, arch: int, hip: bool) -> Any:
    return fallback_for(op, Target(device, Precision(kind or "plain", dtype, dtype, kind))).load()
