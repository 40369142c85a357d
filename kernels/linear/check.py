"""What every implementation of `linear` refuses, and its result where there are no tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import get_args

import torch

from kinema.ops.common import Quantized
from kinema.ops.common.arguments import (
    FLOATS,
    check_channels_dense,
    check_floats,
    check_modulation,
    check_out,
    misfit,
)
from kinema.ops.linear import Activation, Linear, LinearWeight
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate.check import check_norm

ACTIVATIONS = get_args(Activation)


def checked(run: Callable[..., torch.Tensor]) -> Linear:
    """`run`, called only with valid arguments that are not empty."""

    @wraps(run)
    def linear(
        x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor],
        weight: LinearWeight,
        *,
        norm: Norm | None = None,
        activation: Activation = "none",
        gate: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if isinstance(x, tuple):
            x = _pair(x)
        read = _read(x, weight)
        batch, tokens, _ = read[0].shape
        device, dtype = weight.device, weight.activations if isinstance(x, Quantized) else read[0].dtype
        shape = (batch, tokens, weight.out_features)
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: wanted one of {', '.join(ACTIVATIONS)}")
        normed: tuple[torch.Tensor | None, ...] = ()
        if norm is not None:
            if not isinstance(x, torch.Tensor):
                raise ValueError("a norm is of one x in 16 or 32 bits, wanted neither a pair nor a quantised x with it")
            check_norm(norm, (batch, tokens, weight.in_features), device)
            normed = (norm.weight, norm.bias, norm.scale, norm.shift)
        if gate is not None:
            check_modulation("gate", gate, shape, device)
        if residual is not None:
            check_floats("residual", residual, shape, device)
            check_channels_dense("residual", residual)
        if out is not None:
            check_out(out, shape, dtype, device, apart=(*read, gate, *normed), onto=(residual,))
        if not batch * tokens:
            return torch.empty(shape, dtype=dtype, device=device) if out is None else out
        return run(x, weight, norm=norm, activation=activation, gate=gate, residual=residual, out=out)

    return linear


def _pair(x: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Both halves of x, or only the one that has features."""
    if len(x) != 2 or not all(isinstance(part, torch.Tensor) and part.ndim == 3 for part in x):
        raise ValueError(f"x is a tuple of {len(x)}, wanted a pair of tensors [B, S, features]")
    first, second = x
    if first.shape[:2] != second.shape[:2] or first.dtype != second.dtype:
        raise misfit("the second half of x", second, f"{first.dtype} of {tuple(first.shape[:2])} tokens, as the first")
    if not second.shape[2]:
        return first
    return (first, second) if first.shape[2] else second


def _read(
    x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor], weight: LinearWeight
) -> tuple[torch.Tensor, ...]:
    """The tensors of x, checked against the weight; the first has the number of samples and tokens."""
    read: tuple[torch.Tensor, ...]
    if isinstance(x, Quantized):
        x.check()
        _check_part(x.data, weight)
        features, read = x.data.shape[2], (x.data, x.scale)
    else:
        features, read = 0, x if isinstance(x, tuple) else (x,)
        for part in read:
            if part.dtype not in FLOATS:
                raise misfit("x", part, "floats of more than 8 bits, or quantised ones with their scale")
            _check_part(part, weight)
            features += part.shape[2]
    if features != weight.in_features:
        raise ValueError(f"x has {features} features, the weight wanted {weight.in_features}")
    return read


def _check_part(part: torch.Tensor, weight: LinearWeight) -> None:
    if part.ndim != 3 or part.device != weight.device:
        raise misfit("x", part, f"[B, S, {weight.in_features}] on {weight.device}, as the weight")
    check_channels_dense("x", part)


def check_pack(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor] | None,
    gate_weight: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
) -> None:
    """ValueError unless these stack to one weight [out, in] with one bias [out], and the gate's match them."""
    into = weights[0].shape[-1] if weights and weights[0].ndim else 0
    for weight in weights:
        if weight.ndim != 2 or weight.shape[1] != into or 0 in weight.shape or not weight.is_floating_point():
            raise misfit("weight", weight, "floats [out, in], as many in of each that are stacked")
    if not weights:
        raise ValueError("weight is an empty list, wanted at least one to stack")
    if biases is not None and len(biases) != len(weights):
        raise ValueError(f"{len(biases)} biases of {len(weights)} weights, wanted as many or None")
    for weight, bias in zip(weights, biases or (), strict=biases is not None):
        if bias.shape != weight.shape[:1] or not bias.is_floating_point():
            raise misfit("bias", bias, f"floats [{weight.shape[0]}], as many as the weight has rows")
    rows = sum(weight.shape[0] for weight in weights)
    if gate_weight is None:
        if gate_bias is not None:
            raise ValueError("gate_bias is given without a gate_weight, wanted both or neither")
        return
    if gate_weight.shape != (rows, into) or not gate_weight.is_floating_point():
        raise misfit("gate_weight", gate_weight, f"floats {(rows, into)} to match the weight")
    if (gate_bias is None) != (biases is None):
        raise ValueError("gate_bias must match bias: wanted both or neither")
    if gate_bias is not None and (gate_bias.shape != (rows,) or not gate_bias.is_floating_point()):
        raise misfit("gate_bias", gate_bias, f"floats [{rows}] to match the bias")
