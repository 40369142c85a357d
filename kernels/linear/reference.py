"""The truth for `linear`: F.linear on widened weights, then the epilogue, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kinema.ops.common import FP8_MAX, INT8_MAX, Quantized, QuantKind, Target, by_group, write_result
from kinema.ops.common.arguments import unchecked
from kinema.ops.linear import Activation, LinearWeight
from kinema.ops.linear.check import check_pack, checked
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate.reference import norm_modulate
from kinema.ops.quantize.reference import quantize

Quantize = Callable[[torch.Tensor, QuantKind], Quantized]
NormModulate = Callable[[torch.Tensor, Norm, QuantKind | None, None], torch.Tensor | Quantized]


@dataclass(frozen=True)
class ReferenceWeight(LinearWeight):
    """weight: [out, in] (gated: the gate's rows first, [2·out, in]); bias: [rows] fp32; scale: [rows] fp32."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    quantize_activations: QuantKind | None


def pack_linear(
    weight: torch.Tensor | Sequence[torch.Tensor],
    bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    gate_weight: torch.Tensor | None = None,
    gate_bias: torch.Tensor | None = None,
    target: Target,
) -> ReferenceWeight:
    weights = [weight] if isinstance(weight, torch.Tensor) else list(weight)
    biases = [bias] if isinstance(bias, torch.Tensor) else None if bias is None else list(bias)
    check_pack(weights, biases, gate_weight, gate_bias)
    w = weights[0] if len(weights) == 1 else torch.cat(weights)
    b = None if biases is None else biases[0] if len(biases) == 1 else torch.cat(biases)
    out_features, in_features = w.shape
    if gate_weight is not None:
        w = torch.cat((gate_weight, w))
        b = torch.cat((gate_bias, b)) if gate_bias is not None and b is not None else None
    w = w.to(target.device)
    b = b.to(target.device) if b is not None else None
    stored, scale = w, None
    precision = target.precision
    if precision.weights in (torch.float8_e4m3fn, torch.int8):
        limit = FP8_MAX if precision.weights == torch.float8_e4m3fn else INT8_MAX
        scale = w.float().abs().amax(dim=1).clamp(min=1e-12) / limit
        scaled = w.float() / scale[:, None]
        stored = (scaled.round() if precision.weights == torch.int8 else scaled).to(precision.weights)
        b = b.float() if b is not None else None
    elif w.dtype != torch.float64 or precision.weights != torch.float32:  # fp64 stays: tests compute a truth with it
        stored = w.to(precision.weights)
        b = b.float() if b is not None else None
    nbytes = stored.nbytes + (b.nbytes if b is not None else 0) + (scale.nbytes if scale is not None else 0)
    return ReferenceWeight(
        in_features,
        out_features,
        gate_weight is not None,
        nbytes,
        stored.device,
        precision.activations,
        stored,
        b,
        scale,
        precision.quantize_activations,
    )


def activate(y: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activation, in y's dtype."""
    if activation == "none":
        return y
    if activation == "gelu":
        return F.gelu(y)
    if activation == "gelu_tanh":
        return F.gelu(y, approximate="tanh")
    if activation == "quick_gelu":
        return y * torch.sigmoid(1.702 * y)
    return F.silu(y)


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
    given, dtype = source(x, weight, norm, unchecked(norm_modulate), unchecked(quantize))
    return epilogue(project(given, weight, dtype), weight, activation, gate, residual, dtype, out)


def source(
    x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor],
    weight: ReferenceWeight,
    norm: Norm | None,
    norm_modulate: NormModulate,
    quantize: Quantize,
) -> tuple[torch.Tensor | Quantized, torch.dtype]:
    """The product's input, made by these two ops, and the dtype of the result."""
    kind = weight.quantize_activations
    if norm is not None:
        assert isinstance(x, torch.Tensor)
        return norm_modulate(x, norm, kind, None), x.dtype
    if isinstance(x, Quantized):
        return x, weight.activations
    whole = torch.cat(x, dim=-1) if isinstance(x, tuple) else x
    return whole if kind is None else quantize(whole, kind), whole.dtype


def epilogue(
    y: torch.Tensor,
    weight: LinearWeight,
    activation: Activation,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """What follows the product y [B, S, rows], in y's dtype; the result is in `dtype`."""
    if weight.gated:
        gate_half, y = y.chunk(2, dim=-1)
        y = activate(gate_half, activation) * y
    else:
        y = activate(y, activation)
    if gate is not None:
        grouped, g = by_group(y, gate)
        y = (grouped * g.to(y.dtype)).flatten(1, 2)
    if residual is not None:
        y = residual + y
    return write_result(y.to(dtype), out)


def project(x: torch.Tensor | Quantized, weight: ReferenceWeight, dtype: torch.dtype) -> torch.Tensor:
    """x·Wᵀ + b in `dtype`, whatever the storage of either side."""
    if isinstance(x, Quantized) and weight.scale is None:
        x = x.dequantize(dtype)
    if isinstance(x, Quantized):
        # small integers and e4m3 are exact in fp32, so this is the integer product up to fp32 summation
        assert weight.scale is not None
        y = F.linear(x.data.float(), weight.weight.float()) * x.scale * weight.scale
        return (y + weight.bias if weight.bias is not None else y).to(dtype)
    w = weight.weight
    if weight.scale is not None:
        w = w.float() * weight.scale[:, None]
    return F.linear(x, w.to(dtype), weight.bias.to(dtype) if weight.bias is not None else None)
