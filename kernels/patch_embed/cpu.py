"""`patch_embed` on the native CPU kernels: a product that gathers its patches (csrc/cpu/patches.h)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from kinema.ops.common import Target, claim
from kinema.ops.common.native import Cpu, address, cpu, fp32, pack_panels, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.patch_embed import PatchEmbedWeight


class PatchEmbedArguments(ctypes.Structure):
    """kinema_patch_embed_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("frames", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride_b", ctypes.c_int64),
        ("x_stride_c", ctypes.c_int64),
        ("x_stride_t", ctypes.c_int64),
        ("x_stride_h", ctypes.c_int64),
        ("x_stride_w", ctypes.c_int64),
        ("patch_t", ctypes.c_int64),
        ("patch_h", ctypes.c_int64),
        ("patch_w", ctypes.c_int64),
        ("features", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("position", ctypes.c_void_p),
        ("position_stride_b", ctypes.c_int64),
        ("position_stride_s", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride_b", ctypes.c_int64),
        ("out_stride_s", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


@dataclass(frozen=True)
class CpuWeight(PatchEmbedWeight):
    """panels: uint8, laid out by the instruction set of `cpu`; bias: [D] fp32."""

    cpu: Cpu
    panels: torch.Tensor
    bias: torch.Tensor | None


def pack_patch_embed(weight: torch.Tensor, bias: torch.Tensor | None = None, *, target: Target) -> CpuWeight:
    features, channels, pt, ph, pw = weight.shape
    native = cpu()
    panels = pack_panels(native, weight.flatten(1))
    return CpuWeight((pt, ph, pw), channels, features, native, panels, fp32(bias))


def patch_embed(
    x: torch.Tensor,
    weight: PatchEmbedWeight,
    *,
    position: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    assert isinstance(weight, CpuWeight)
    batch, channels, *size = x.shape
    if channels != weight.in_channels or any(n % p for n, p in zip(size, weight.patch, strict=True)):
        raise ValueError(
            f"cannot cut {tuple(x.shape)} [B, C, T, H, W] into patches of {weight.patch}: "
            f"wanted {weight.in_channels} channels and sizes that divide"
        )
    if x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype}, wanted torch.float32")
    tokens = 1
    for n, p in zip(size, weight.patch, strict=True):
        tokens *= n // p
    y = claim(out, (batch, tokens, weight.out_features), torch.float32, x.device)
    position = fp32(position)
    if position is not None and position.shape[-2:] != y.shape[-2:]:
        raise ValueError(f"position is {tuple(position.shape)}, wanted [{tokens}, {weight.out_features}]")
    arguments = PatchEmbedArguments(
        batch,
        channels,
        *size,
        x.data_ptr(),
        *x.stride(),
        *weight.patch,
        weight.out_features,
        weight.panels.data_ptr(),
        address(weight.bias),
        address(position),
        position.stride(0) if position is not None and position.ndim == 3 and position.shape[0] > 1 else 0,
        position.stride(-2) if position is not None else 0,
        y.data_ptr(),
        *y.stride()[:2],
        None,
        thread_count(),
    )
    arguments.workspace = workspace(weight.cpu.ask("kinema_patch_embed_workspace", arguments))
    weight.cpu.call("kinema_patch_embed", arguments)
    return y
