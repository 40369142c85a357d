"""`norm_modulate` on the native CPU kernels (csrc/cpu/rows.h)."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import torch

from kinema.ops.common import Quantized, QuantKind, claim, group_strides
from kinema.ops.common.native import E4M3, F32, I8, address, cpu, fp32, readable, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.norm_modulate import Norm, NormKind

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
    if norm.kind not in NORMS:
        raise ValueError(f"unknown norm {norm.kind!r}: wanted 'layer' or 'rms'")
    return replace(norm, weight=fp32(norm.weight), bias=fp32(norm.bias), scale=fp32(norm.scale), shift=fp32(norm.shift))


def norm_arguments(x: torch.Tensor, norm: Norm) -> NormArguments:
    """What a kernel is told of a readable norm of x [B, S, C]."""
    for name, given in (("weight", norm.weight), ("bias", norm.bias)):
        if given is not None and given.shape != x.shape[2:]:
            raise ValueError(f"the norm's {name} is {tuple(given.shape)}, wanted [{x.shape[2]}]")
    return NormArguments(
        address(norm.weight),
        address(norm.bias),
        address(norm.scale),
        *group_strides(x, norm.scale),
        address(norm.shift),
        *group_strides(x, norm.shift),
        norm.eps,
        NORMS[norm.kind],
    )


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
) -> Any:
    if quantize is not None and out is not None:
        raise ValueError("quantize returns new tensors: out must be None")
    readable("x", x)
    batch, tokens, channels = x.shape
    given = readable_norm(Norm(eps, norm, weight, bias, scale, shift))
    y: torch.Tensor
    scales = None
    if quantize is None:
        y, code = claim(out, x.shape, torch.float32, x.device), F32
    else:
        y = torch.empty(x.shape, dtype=torch.int8 if quantize == "int8" else torch.float8_e4m3fn)
        scales, code = torch.empty(batch, tokens, 1), I8 if quantize == "int8" else E4M3
    arguments = NormModulateArguments(
        batch,
        tokens,
        channels,
        x.data_ptr(),
        *x.stride()[:2],
        norm_arguments(x, given),
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
    return y if scales is None else Quantized(y, scales)
