"""What every implementation of `quantize` refuses, and its result where there are no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

from kinema.ops.common import Quantized, QuantKind
from kinema.ops.common.arguments import FLOATS, check_channels_dense, misfit
from kinema.ops.common.quantized import KINDS
from kinema.ops.quantize import Quantize


def checked(run: Callable[..., Quantized]) -> Quantize:
    """`run`, called only with valid arguments that are not empty."""

    @wraps(run)
    def quantize(x: torch.Tensor, kind: QuantKind) -> Quantized:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: wanted 'fp8' or 'int8'")
        if x.ndim < 1 or x.shape[-1] < 1 or x.dtype not in FLOATS:
            raise misfit("x", x, "floats [..., C] with at least one channel")
        check_channels_dense("x", x)
        return run(x, kind) if x.numel() else Quantized.empty(x.shape, kind, x.device)

    return quantize
