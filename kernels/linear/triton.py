"""`linear` in Triton: weights and launch arguments. triton_kernel.py has the kernel, triton_tables.py the tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.ops.common import Quantized, QuantKind, Target, dense, group_strides, output_buffer
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.launch import Config, architecture, launch, select_config
from kinema.ops.common.triton_device import IMPRECISE_FP8, describable, processors
from kinema.ops.common.triton_numerics import FEWEST_FP32
from kinema.ops.linear import Activation, LinearWeight, reference
from kinema.ops.linear.check import checked
from kinema.ops.linear.triton_kernel import linear_kernel
from kinema.ops.linear.triton_tables import TABLES
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate.triton import norm_modulate
from kinema.ops.quantize.triton import quantize_together

SMALL_ROWS = 16  # up to here a tile of one tensor-core instruction's height is enough
MANY_ROWS = 1 << 14  # from here on there are tiles for every GPU, and calls are of one kind

_COMPUTE = {
    torch.float32: (tl.float32, "_fp32"),
    torch.bfloat16: (tl.bfloat16, ""),
    torch.float16: (tl.float16, ""),
    torch.float8_e4m3fn: (tl.float8e4nv, "_fp8"),
    torch.int8: (tl.int8, "_int8"),
}


@dataclass(frozen=True)
class TritonWeight(LinearWeight):
    """weight: [rows, in], dense, of gated weights the gate's rows first; bias, scale: [rows] fp32."""

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
) -> TritonWeight:
    # the numbers are the reference's, bit for bit; its layout is the one that tensor cores read e4m3 in
    packed = reference.pack_linear(weight, bias, gate_weight=gate_weight, gate_bias=gate_bias, target=target)
    return TritonWeight(
        packed.in_features,
        packed.out_features,
        packed.gated,
        packed.nbytes,
        packed.device,
        packed.activations,
        packed.weight.contiguous(),
        packed.bias.contiguous() if packed.bias is not None else None,
        packed.scale,
        packed.quantize_activations,
    )


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
    assert isinstance(weight, TritonWeight)
    first, second, x_scale, dtype = _sources(x, weight, norm)
    batch, tokens, features = first.shape
    more = 0 if second is None else second.shape[2]
    y = output_buffer(out, (batch, tokens, weight.out_features), dtype, first.device)
    gate = dense(gate)
    gate_b, gate_g, gate_tokens = group_strides(tokens, gate)
    gate_is_row = gate is None or gate.shape[1] == 1

    # [B, S] as one row of tokens, where every tensor allows it: no tile is then cut off at the end of a sample
    grids = [t for t in (first, second, y, residual) if t is not None]
    if gate_is_row and gate_b == 0 and all(_one_row(t) for t in grids):
        samples, tokens = 1, batch * tokens
    else:
        samples = batch

    computed = _common_dtype(first.dtype, weight.weight.dtype)
    compute, kind = _COMPUTE[computed]
    size = "large" if tokens > SMALL_ROWS else "small"
    name = f"linear/{size}{kind}"
    words = ("gated" if weight.gated else "", "pair" if second is not None else "")
    shape = (min(samples * tokens, MANY_ROWS), weight.out_features, weight.in_features, *words)
    table = select_config(name, TABLES[name], first.device, *shape)
    blocks = dict(table.blocks)
    per_sm, tma = blocks.pop("PER_SM"), blocks.pop("TMA")
    blocks["FEATURES"] = max(blocks.pop("BYTES") // computed.itemsize, FEWEST_FP32 if kind == "_fp32" else 0)
    blocks["COLUMNS"] //= 2 if weight.gated else 1
    turn = blocks.setdefault("STEPS", 1) * blocks["FEATURES"]
    tiles = triton.cdiv(tokens, blocks["ROWS"]) * triton.cdiv(weight.out_features, blocks["COLUMNS"])

    (x_b, x_s), (second_b, second_s) = _strides(first, samples), _strides(second, samples)
    (y_b, y_s), (residual_b, residual_s) = _strides(y, samples), _strides(residual, samples)
    read: list[Any] = [_bits(t, computed) for t in (first, second, weight.weight)]
    descriptors = bool(tma) and all(t is None or describable(t) for t in read)
    if descriptors:
        rows, columns, block = blocks["ROWS"], blocks["COLUMNS"], blocks["FEATURES"]
        read = [_describe(t, samples, tokens, [1, rows, block]) for t in read[:2]]
        read.append(TensorDescriptor.from_tensor(_bits(weight.weight, computed), [columns, block]))
    launch(
        linear_kernel,
        (min(samples * tiles, per_sm * processors(first.device)),),
        Config(blocks, table.warps, table.stages),
        x=read[0],
        second=read[1],
        weight=read[2],
        y=y,
        x_scale=x_scale,
        weight_scale=weight.scale,
        bias=weight.bias,
        gate=gate,
        residual=residual,
        samples=samples,
        tokens=tokens,
        columns=weight.out_features,
        features=features,
        more=more,
        x_b=x_b,
        x_s=x_s,
        second_b=second_b,
        second_s=second_s,
        y_b=y_b,
        y_s=y_s,
        gate_b=gate_b,
        gate_g=gate_g,
        gate_tokens=gate_tokens,
        residual_b=residual_b,
        residual_s=residual_s,
        COMPUTE=compute,
        ACTIVATION=activation,
        GATED=weight.gated,
        GATE_IS_ROW=gate_is_row,
        WHOLE=features % turn == 0 and more % turn == 0,
        DESCRIPTORS=descriptors,
        FLATTEN=per_sm == 1 and second is None,
        PROMOTE=architecture(first.device) in IMPRECISE_FP8,
    )
    return y


def _sources(
    x: torch.Tensor | Quantized | tuple[torch.Tensor, torch.Tensor], weight: TritonWeight, norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.dtype]:
    """The kernel's inputs: first and second source, and a scale per token; and the dtype of the result."""
    if norm is not None:
        assert isinstance(x, torch.Tensor)
        read = unchecked(norm_modulate)(x, norm, weight.quantize_activations, None)
        if isinstance(read, Quantized):
            return read.data, None, read.scale.reshape(-1), x.dtype
        return read, None, None, x.dtype
    first, second = x if isinstance(x, tuple) else (x, None)
    if isinstance(first, torch.Tensor):
        dtype = first.dtype
        if weight.quantize_activations is not None:
            first, second = quantize_together(first, second, weight.quantize_activations), None
    else:
        dtype = weight.activations
    if isinstance(first, Quantized):
        return first.data, None, first.scale.reshape(-1), dtype
    return first, second, None, dtype


def _common_dtype(x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    """The dtype that both are multiplied in: the narrowest that holds the values of each."""
    unknown = {x, weight} - set(_COMPUTE)
    if unknown:
        raise ValueError(f"x is {x} and the weight {weight}, wanted each to be one of {', '.join(map(str, _COMPUTE))}")
    if x == weight:
        return x
    if x.itemsize == weight.itemsize == 1:
        return torch.bfloat16
    if x.itemsize == weight.itemsize:
        return torch.float32
    return max(x, weight, key=lambda dtype: dtype.itemsize)


def _bits(t: torch.Tensor | None, computed: torch.dtype) -> torch.Tensor | None:
    """t, but e4m3 that is widened first as uint8, since not every GPU supports the format."""
    return t.view(torch.uint8) if t is not None and t.dtype == torch.float8_e4m3fn != computed else t


def _one_row(t: torch.Tensor) -> bool:
    return t.shape[0] == 1 or t.shape[1] == 1 or t.stride(0) == t.shape[1] * t.stride(1)


def _strides(t: torch.Tensor | None, samples: int) -> tuple[int, int]:
    """Over samples and tokens; with one sample its tokens may come from a batch of single tokens."""
    if t is None:
        return 0, 0
    if samples == 1:
        return 0, t.stride(1) if t.shape[1] > 1 else t.stride(0)
    return t.stride(0), t.stride(1)


def _describe(t: torch.Tensor | None, samples: int, tokens: int, block: list[int]) -> TensorDescriptor | None:
    if t is None:
        return None
    stride_b, stride_s = _strides(t, samples)
    return TensorDescriptor(t, [samples, tokens, t.shape[2]], [stride_b or tokens * stride_s, stride_s, 1], block)
