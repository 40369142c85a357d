"""`norm_modulate` on the native CPU kernels (csrc/cpu/rows.h)."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from operator import is_

import torch

from kinema.ops.common import Quantized, QuantKind, group_strides, output_buffer
from kinema.ops.common.native import E4M3, F32, I8, address, check_readable, cpu, fp32, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate.check import checked

NORMS = {"rms": 1, "layer": 2}


class NormArguments(ctypes.Structure):
    """kinema_norm of csrc/include/kinema.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("scale_stride_b", ctypes.c_int64),
        ("scale_stride_g", ctypes.c_int64),
        ("scale_tokens", ctypes.c_int64),
        ("shift", ctypes.c_void_p),
        ("shift_stride_b", ctypes.c_int64),
        ("shift_stride_g", ctypes.c_int64),
        ("shift_tokens", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("kind", ctypes.c_int32),
    )


class NormModulateArguments(ctypes.Structure):
    """kinema_norm_modulate_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride_b", ctypes.c_int64),
        ("x_stride_s", ctypes.c_int64),
        ("norm", NormArguments),
        ("out", ctypes.c_void_p),
        ("out_stride_b", ctypes.c_int64),
        ("out_stride_s", ctypes.c_int64),
        ("out_scale", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("out_dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def readable_norm(norm: Norm) -> Norm:
    """The norm with its tensors as a kernel reads them, which must outlive the call."""
    given = (norm.weight, norm.bias, norm.scale, norm.shift)
    weight, bias, scale, shift = made = tuple(map(fp32, given))
    if all(map(is_, made, given)):  # as ever, and another Norm would cost a third of a small call
        return norm
    return replace(norm, weight=weight, bias=bias, scale=scale, shift=shift)


def norm_arguments(tokens: int, norm: Norm) -> NormArguments:
    """A kernel's arguments for a readable norm of x [B, tokens, C]."""
    return NormArguments(
        address(norm.weight),
        address(norm.bias),
        address(norm.scale),
        *group_strides(tokens, norm.scale),
        address(norm.shift),
        *group_strides(tokens, norm.shift),
        norm.eps,
        NORMS[norm.kind],
    )


@checked
def norm_modulate(
    x: torch.Tensor, norm: Norm, quantize: QuantKind | None, out: torch.Tensor | None
) -> torch.Tensor | Quantized:
    check_readable("x", x)
    batch, tokens, channels = x.shape
    norm = readable_norm(norm)
    quantized = None
    if quantize is None:
        y, scales, code = output_buffer(out, x.shape, torch.float32, x.device), None, F32
    else:
        quantized = Quantized.empty(x.shape, quantize, x.device)
        y, scales, code = quantized.data, quantized.scale, I8 if quantize == "int8" else E4M3
    arguments = NormModulateArguments(
        batch,
        tokens,
        channels,
        x.data_ptr(),
        *x.stride()[:2],
        norm_arguments(tokens, norm),
        y.data_ptr(),
        *y.stride()[:2],
        address(scales),
        None,
        code,
        thread_count(),
    )
    native = cpu()
    if scales is not None:
        arguments.workspace = workspace(native.ask("kinema_norm_modulate_workspace", arguments))
    native.call("kinema_norm_modulate", arguments)
    return y if quantized is None else quantized
