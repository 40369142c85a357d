"""norm_modulate: LayerNorm or RMSNorm, then (1 + scale)·n + shift, then 8 bits if asked: one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, overload

import torch

from kinema.ops.common import Implementation, Op, Quantized, QuantKind
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import quantize_unsupported, triton_implementation

NormKind = Literal["layer", "rms"]


@dataclass(frozen=True)
class Norm:
    """A norm and modulation for an op that applies `norm_modulate` to its input; fields are that op's arguments."""

    eps: float
    kind: NormKind = "layer"
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None


class NormModulate(Protocol):
    @overload
    def __call__(
        self,
        x: torch.Tensor,
        *,
        norm: NormKind = ...,
        eps: float,
        weight: torch.Tensor | None = ...,
        bias: torch.Tensor | None = ...,
        scale: torch.Tensor | None = ...,
        shift: torch.Tensor | None = ...,
        quantize: None = ...,
        out: torch.Tensor | None = ...,
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self,
        x: torch.Tensor,
        *,
        norm: NormKind = ...,
        eps: float,
        weight: torch.Tensor | None = ...,
        bias: torch.Tensor | None = ...,
        scale: torch.Tensor | None = ...,
        shift: torch.Tensor | None = ...,
        quantize: QuantKind,
        out: None = ...,
    ) -> Quantized: ...

    def __call__(
        self,
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
        """y = (1 + scale)·(norm(x)·weight + bias) + shift.

        norm: "layer" (x − mean)/√(var + eps), population variance; "rms" x/√(mean(x²) + eps), over C.
        x: [B, S, C], any stride over B and S; weight, bias: [C]; scale, shift: [B or 1, G, C] by group of tokens
        (see `by_group`), each with its own G, any stride over B and G; all of these in fp32 or x's dtype.
        Statistics and modulation in fp32; the variance is that of x − mean (E[x²] − mean² cancels where the
        mean is large). `out` may be x itself, and must not overlap it otherwise. S and B may be 0.
        Returns [B, S, C] in x's dtype, or with `quantize` (and no `out`) y in 8 bits per token, straight from
        fp32.
        """
        ...


def _result(x: torch.Tensor, *, quantize: QuantKind | None = None, **_: object) -> torch.Tensor | Quantized:
    return x.new_empty(x.shape) if quantize is None else Quantized.empty(x.shape, quantize, x.device)


OP = Op(
    "norm_modulate",
    ("norm_modulate",),
    (
        triton_implementation("norm_modulate", quantize_unsupported),
        cpu_implementation("norm_modulate"),
        Implementation("reference", "kinema.ops.norm_modulate.reference"),
    ),
    _result,
)
