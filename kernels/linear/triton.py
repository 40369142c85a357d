"""`linear` in Triton: weights and launch arguments. triton_kernel.py has the kernel, triton_tables.py the tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.ops.common import Quantized, QuantKind, Target, dense, group_strides_of, output_buffer
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.launch import Config, Layout, architecture, launch, layout, remembered, select_config
from kinema.ops.common.triton_descriptor import described, descriptor
from kinema.ops.common.triton_device import IMPRECISE_FP8, aligned, describable_layout, processors
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
    y = output_buffer(out, (*first.shape[:2], weight.out_features), dtype, first.device)
    gate, matrix = dense(gate), weight.weight
    plan = _plan(
        first.device,
        (first.dtype, matrix.dtype, aligned(first, second, matrix)),
        (weight.out_features, weight.in_features, weight.gated),
        layout(first),
        layout(second),
        layout(y),
        layout(gate),
        layout(residual),
    )
    launch(
        linear_kernel,
        plan.grid,
        plan.config,
        x=described(_bits(first, plan.computed), plan.x),
        second=described(_bits(second, plan.computed), plan.second),
        weight=described(_bits(matrix, plan.computed), plan.weight),
        y=y,
        x_scale=x_scale,
        weight_scale=weight.scale,
        bias=weight.bias,
        gate=gate,
        residual=residual,
        ACTIVATION=activation,
        **plan.arguments,
    )
    return y


@dataclass(frozen=True)
class _Plan:
    """What calls of one kind share. x, second, weight: their descriptors; None where the kernel takes pointers."""

    grid: tuple[int, ...]
    config: Config
    computed: torch.dtype
    x: TensorDescriptor | None
    second: TensorDescriptor | None
    weight: TensorDescriptor | None
    arguments: Mapping[str, Any]


@remembered
def _plan(
    device: torch.device,
    stored: tuple[torch.dtype, torch.dtype, bool],
    matrix: tuple[int, int, bool],
    first: Layout,
    second: Layout | None,
    y: Layout,
    gate: Layout | None,
    residual: Layout | None,
) -> _Plan:
    """stored: dtypes of x and the weight, and whether all begin at 16 bytes. matrix: out, in, gated."""
    (x_dtype, weight_dtype, is_aligned), (out_features, in_features, gated) = stored, matrix
    (batch, tokens, features), more = first[0], 0 if second is None else second[0][2]
    gate_b, gate_g, gate_tokens = group_strides_of(tokens, gate)
    gate_is_row = gate is None or gate[0][1] == 1

    # [B, S] as one row of tokens, where every tensor allows it: no tile is then cut off at the end of a sample
    grids = [t for t in (first, second, y, residual) if t is not None]
    if gate_is_row and gate_b == 0 and all(_one_row(*t) for t in grids):
        samples, tokens = 1, batch * tokens
    else:
        samples = batch

    computed = _common_dtype(x_dtype, weight_dtype)
    compute, kind = _COMPUTE[computed]
    size = "large" if tokens > SMALL_ROWS else "small"
    name = f"linear/{size}{kind}"
    words = ("gated" if gated else "", "pair" if second is not None else "")
    sizes = (min(samples * tokens, MANY_ROWS), out_features, in_features)
    table = select_config(name, TABLES[name], device, *sizes, *words)
    blocks = dict(table.blocks)
    per_sm, tma = blocks.pop("PER_SM"), blocks.pop("TMA")
    blocks["FEATURES"] = max(blocks.pop("BYTES") // computed.itemsize, FEWEST_FP32 if kind == "_fp32" else 0)
    blocks["COLUMNS"] //= 2 if gated else 1
    turn = blocks.setdefault("STEPS", 1) * blocks["FEATURES"]
    tiles = triton.cdiv(tokens, blocks["ROWS"]) * triton.cdiv(out_features, blocks["COLUMNS"])

    (x_b, x_s), (second_b, second_s) = _strides(first, samples), _strides(second, samples)
    (y_b, y_s), (residual_b, residual_s) = _strides(y, samples), _strides(residual, samples)
    rows = out_features * (2 if gated else 1)
    x_stored, weight_stored = _stored(x_dtype, computed), _stored(weight_dtype, computed)
    whole_weight = ((out_features * (2 if gated else 1), in_features), (in_features, 1))
    read = [first, second] if second is not None else [first]
    descriptors = bool(tma) and is_aligned and describable_layout(*whole_weight, weight_stored.itemsize)
    descriptors = descriptors and all(describable_layout(*t, x_stored.itemsize) for t in read)
    x_tiles = second_tiles = weight_tiles = None
    if descriptors:
        rows, columns, block = blocks["ROWS"], blocks["COLUMNS"], blocks["FEATURES"]
        weight_tiles = descriptor(*whole_weight, (columns, block), weight_stored)
        shape = (samples, tokens)
        x_tiles = descriptor((*shape, features), (x_b or tokens * x_s, x_s, 1), (1, rows, block), x_stored)
        if second is not None:
            strides = (second_b or tokens * second_s, second_s, 1)
            second_tiles = descriptor((*shape, more), strides, (1, rows, block), x_stored)
    arguments = {
        "samples": samples,
        "tokens": tokens,
        "columns": out_features,
        "features": features,
        "more": more,
        "x_b": x_b,
        "x_s": x_s,
        "second_b": second_b,
        "second_s": second_s,
        "y_b": y_b,
        "y_s": y_s,
        "gate_b": gate_b,
        "gate_g": gate_g,
        "gate_tokens": gate_tokens,
        "residual_b": residual_b,
        "residual_s": residual_s,
        "COMPUTE": compute,
        "GATED": gated,
        "GATE_IS_ROW": gate_is_row,
        "WHOLE": features % turn == 0 and more % turn == 0,
        "DESCRIPTORS": descriptors,
        "FLATTEN": per_sm == 1 and second is None,
        "PROMOTE": architecture(device) in IMPRECISE_FP8,
    }
    grid = (min(samples * tiles, per_sm * processors(device)),)
    config = Config(blocks, table.warps, table.stages)
    return _Plan(grid, config, computed, x_tiles, second_tiles, weight_tiles, arguments)


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
    if t is None or t.dtype != torch.float8_e4m3fn or t.dtype == computed:
        return t
    return t.view(torch.uint8)


def _stored(dtype: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """The dtype of `_bits`."""
    return torch.uint8 if dtype == torch.float8_e4m3fn != computed else dtype


def _one_row(shape: Sequence[int], strides: Sequence[int]) -> bool:
    return shape[0] == 1 or shape[1] == 1 or strides[0] == shape[1] * strides[1]


def _strides(t: Layout | None, samples: int) -> tuple[int, int]:
    """Over samples and tokens; with one sample its tokens may come from a batch of single tokens."""
    if t is None:
        return 0, 0
    shape, strides = t
    if samples == 1:
        return 0, strides[1] if shape[1] > 1 else strides[0]
    return strides[0], strides[1]
