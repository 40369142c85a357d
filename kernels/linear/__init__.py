"""linear: one GEMM over packed weights, with the norm before it and everything that follows it in a DiT block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from kinema.ops.common import Implementation, Op, Packed, Quantized, Target
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import fp8_unsupported, triton_implementation, triton_unsupported
from kinema.ops.linear.libraries import TORCH
from kinema.ops.norm_modulate import Norm

Activation = Literal["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]


@dataclass(frozen=True)
class LinearWeight(Packed):
    """A weight in the layout of the implementation that packed it, on `device`; opaque to models.

    `gated` weights hold two projections of the same shape: y = act(x·W_gateᵀ) · (x·Wᵀ). activations: the dtype of
    results if x is quantised already.
    """

    in_features: int
    out_features: int
    gated: bool
    nbytes: int
    device: torch.device
    activations: torch.dtype

    @property
    def code_top(self) -> int | None:
        """The highest code of int8 activations that are codes (see `Linear`); None: they are those of `quantize`."""
        return None

    @property
    def rounds_to(self) -> torch.dtype | None:
        """The dtype that an fp32 x is rounded to because its products are faster; None: x is multiplied as it is."""
        return None


class PackLinear(Protocol):
    def __call__(
        self,
        weight: torch.Tensor | Sequence[torch.Tensor],
        bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        gate_weight: torch.Tensor | None = None,
        gate_bias: torch.Tensor | None = None,
        target: Target,
    ) -> LinearWeight:
        """Pack once, at load.

        weight: [out, in], any float dtype (a checkpoint's); several are stacked along `out` (a fused QKV).
        bias: [out], likewise.
        gate_weight: [out, in], makes the weight gated.
        Stored as `target.precision.weights`; fp8 and int8 get one fp32 scale per output channel, as `quantize`
        gives one per token: max(max|w|, 1e-12) / limit, rounded to nearest even. Biases stay fp32.
        """
        ...


class Linear(Protocol):
    def __call__(
        self,
        x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor],
        weight: LinearWeight,
        *,
        norm: Norm | None = None,
        activation: Activation = "none",
        gate: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """y = residual + gate · act(n·Wᵀ + b), where n is x or, with a norm, `norm_modulate` of it.

        x: [B, S, in], any stride over B and S; or a pair whose features are read one after the other, as if
        concatenated (blocks that project attention and MLP together); or already quantised. If the target's
        precision quantises activations, x is quantised first, a pair with one scale per token over both: as
        `quantize` does, or, for a weight with a `code_top`, to scale · (code − zero) with codes of 0 to that and
        scale = max(max(x, 0) − min(x, 0), 1e-12) / top, zero = round(−min(x, 0) / scale),
        code = round(x / scale) + zero. For a weight with a `rounds_to`, x or its norm is rounded to that.
        norm: of one x in 16 or 32 bits; n is rounded to x's dtype, or quantised straight from fp32.
        activation: "gelu" is the exact erf form, "gelu_tanh" the tanh form, "quick_gelu" x·σ(1.702x); for
        gated weights it applies to the gate half.
        gate: [B or 1, G, out] by group of tokens (see `by_group`), fp32 or x's dtype, any stride over B and G.
        residual, out: [B, S, out]; `out` may be `residual` itself, and shares no memory with anything else read.
        S and B may be 0. Accumulates in fp32.
        Returns [B, S, out] in x's dtype; for quantised x in the target's dtype between ops.
        """
        ...


def _triton_unsupported(target: Target) -> list[str]:
    """e4m3 weights that are only stored are widened by the kernel itself; multiplying e4m3 needs the hardware."""
    precision = target.precision
    multiplied = precision.weights == torch.float8_e4m3fn and precision.quantize_activations is not None
    return fp8_unsupported(target) if multiplied else triton_unsupported(target)


def _result(
    x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor], weight: LinearWeight, **_: object
) -> torch.Tensor:
    first = x.data if isinstance(x, Quantized) else x[0] if isinstance(x, tuple) else x
    dtype = weight.activations if isinstance(x, Quantized) else first.dtype
    return first.new_empty((*first.shape[:-1], weight.out_features), dtype=dtype)


OP = Op(
    "linear",
    ("linear", "pack_linear"),
    (
        TORCH,
        triton_implementation("linear", _triton_unsupported),
        cpu_implementation("linear"),
        Implementation("reference", "kinema.ops.linear.reference"),
    ),
    _result,
)
