"""`linear` on the native CPU kernels: weights packed into panels, and call arguments (csrc/cpu/linear.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinema.ops.common import Quantized, Target, group_strides, output_buffer
from kinema.ops.common.native import (
    ACTIVATIONS,
    BF16,
    DTYPES,
    E4M3,
    I8,
    Cpu,
    address,
    check_readable,
    cpu,
    fp32,
    refuse_gradients,
    workspace,
)
from kinema.ops.common.pages import aligned_bytes
from kinema.ops.common.threads import thread_count
from kinema.ops.linear import Activation, LinearWeight, reference
from kinema.ops.linear.check import checked
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate.cpu import norm_arguments, readable_norm

IN_BF16 = (BF16, E4M3)  # weights whose values are exact in bf16


class LinearArguments(ctypes.Structure):
    """kinema_linear_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride_b", ctypes.c_int64),
        ("x_stride_s", ctypes.c_int64),
        ("x_features", ctypes.c_int64),
        ("x2", ctypes.c_void_p),
        ("x2_stride_b", ctypes.c_int64),
        ("x2_stride_s", ctypes.c_int64),
        ("x_scale", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("weight_scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("gate", ctypes.c_void_p),
        ("gate_stride_b", ctypes.c_int64),
        ("gate_stride_g", ctypes.c_int64),
        ("gate_tokens", ctypes.c_int64),
        ("residual", ctypes.c_void_p),
        ("residual_stride_b", ctypes.c_int64),
        ("residual_stride_s", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride_b", ctypes.c_int64),
        ("out_stride_s", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("x_dtype", ctypes.c_int32),
        ("weight_dtype", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("quantize", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@dataclass(frozen=True)
class CpuWeight(LinearWeight):
    """panels: uint8, laid out by the instruction set of `cpu`; bias, scale: [rows] fp32, a gate's rows first."""

    cpu: Cpu
    panels: torch.Tensor
    dtype: int
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    quantize: bool  # x is rounded to codes (int8 weights) or to bf16

    @property
    def code_top(self) -> int | None:
        codes = self.quantize and self.dtype == I8
        return int(self.cpu.library.kinema_linear_code_top(self.cpu.handle)) if codes else None

    @property
    def rounds_to(self) -> torch.dtype | None:
        return torch.bfloat16 if self.quantize and self.dtype in IN_BF16 else None


def pack_linear(
    weight: torch.Tensor | Sequence[torch.Tensor],
    bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    gate_weight: torch.Tensor | None = None,
    gate_bias: torch.Tensor | None = None,
    target: Target,
) -> CpuWeight:
    # the numbers are the reference's, bit for bit
    packed = reference.pack_linear(weight, bias, gate_weight=gate_weight, gate_bias=gate_bias, target=target)
    refuse_gradients(packed.weight)
    native = cpu()
    codes = packed.quantize_activations is not None
    if codes and packed.weight.dtype != torch.int8:
        raise ValueError(
            f"activations in {packed.quantize_activations} of a weight in {packed.weight.dtype}: wanted int8"
        )
    if packed.weight.dtype not in DTYPES:
        raise ValueError(f"the weight is {packed.weight.dtype}, wanted a float dtype of at most 32 bits")
    dtype = DTYPES[packed.weight.dtype]
    shape = (packed.in_features, packed.out_features, dtype, int(packed.gated))
    rows = packed.weight.detach().contiguous()
    panels = aligned_bytes(native.size("kinema_linear_packed_bytes", *shape))
    native.pack("kinema_linear_pack", *shape, rows.data_ptr(), panels.data_ptr())
    bias_rows = packed.bias.detach().contiguous() if packed.bias is not None else None
    return CpuWeight(
        packed.in_features,
        packed.out_features,
        packed.gated,
        panels.nbytes + sum(t.nbytes for t in (bias_rows, packed.scale) if t is not None),
        panels.device,
        torch.float32,
        native,
        panels,
        dtype,
        bias_rows,
        packed.scale,
        codes or (dtype in IN_BF16 and _multiplies_bf16(native)),
    )


def _multiplies_bf16(native: Cpu) -> bool:
    return bool(native.library.kinema_linear_multiplies_bf16(native.handle))


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
    assert isinstance(weight, CpuWeight)
    norm = readable_norm(norm) if norm is not None else None
    first, second = x if isinstance(x, tuple) else (x, None)
    scale = None
    if isinstance(first, Quantized):
        scale = first.scale.reshape(-1)
        first = first.data
    batch, tokens, features = first.shape
    y = output_buffer(out, (batch, tokens, weight.out_features), torch.float32, first.device)
    if scale is None:
        check_readable("x", first)
    if residual is not None:
        check_readable("residual", residual)
    gate = fp32(gate)
    gate_b, gate_g, gate_tokens = group_strides(tokens, gate)
    normed = norm_arguments(tokens, norm) if norm is not None else None
    arguments = LinearArguments(
        batch,
        tokens,
        first.data_ptr(),
        *first.stride()[:2],
        features,
        address(second),
        *(second.stride()[:2] if second is not None else (0, 0)),
        address(scale),
        ctypes.addressof(normed) if normed is not None else None,
        weight.panels.data_ptr(),
        address(weight.scale),
        address(weight.bias),
        weight.in_features,
        weight.out_features,
        address(gate),
        gate_b,
        gate_g,
        gate_tokens,
        address(residual),
        *(residual.stride()[:2] if residual is not None else (0, 0)),
        y.data_ptr(),
        *y.stride()[:2],
        None,
        DTYPES[first.dtype],
        weight.dtype,
        weight.gated,
        weight.quantize and scale is None,
        ACTIVATIONS[activation],
        thread_count(),
    )
    arguments.workspace = workspace(weight.cpu.ask("kinema_linear_workspace", arguments))
    weight.cpu.call("kinema_linear", arguments)
    return y
