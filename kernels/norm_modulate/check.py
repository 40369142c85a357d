"""What every implementation of `norm_modulate` refuses, and its result where there are no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import cast, get_args

import torch

from kinema.ops.common import Quantized, QuantKind
from kinema.ops.common.arguments import (
    FLOATS,
    check_channels_dense,
    check_floats,
    check_modulation,
    check_out,
    misfit,
)
from kinema.ops.common.quantized import KINDS
from kinema.ops.norm_modulate import Norm, NormKind, NormModulate

NORMS = get_args(NormKind)


def check_norm(norm: Norm, shape: tuple[int, int, int], device: torch.device) -> None:
    """ValueError unless the norm fits tokens of this shape, [B, S, C], on this device."""
    if norm.kind not in NORMS:
        raise ValueError(f"unknown norm {norm.kind!r}: wanted 'layer' or 'rms'")
    channels = shape[2:]
    if norm.weight is not None:
        check_floats("the norm's weight", norm.weight, channels, device)
    if norm.bias is not None:
        check_floats("the norm's bias", norm.bias, channels, device)
    if norm.scale is not None:
        check_modulation("scale", norm.scale, shape, device)
    if norm.shift is not None:
        check_modulation("shift", norm.shift, shape, device)


def checked(run: Callable[..., torch.Tensor | Quantized]) -> NormModulate:
    """`run`, called only with valid arguments that are not empty; the norm as one record."""

    @wraps(run)
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
        given, shape, device = Norm(eps, norm, weight, bias, scale, shift), x.shape, x.device
        if len(shape) != 3 or shape[2] < 1 or x.dtype not in FLOATS:
            raise misfit("x", x, "floats [B, S, C] with at least one channel")
        check_channels_dense("x", x)
        check_norm(given, shape, device)
        if quantize is not None:
            if quantize not in KINDS:
                raise ValueError(f"unknown kind {quantize!r}: wanted 'fp8', 'int8' or None")
            if out is not None:
                raise ValueError("quantize returns new tensors: out must be None")
        if out is not None:
            check_out(out, shape, x.dtype, device, apart=(weight, bias, scale, shift), onto=(x,))
        if x.numel():
            return run(x, given, quantize, out)
        if quantize is not None:
            return Quantized.empty(shape, quantize, device)
        return torch.empty_like(x) if out is None else out

    return cast("NormModulate", norm_modulate)
