"""`patch_embed` on the native CPU kernels: a product that gathers its patches (csrc/cpu/patches.h)."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch

from kinema.ops.common import Target, output_buffer
from kinema.ops.common.native import Cpu, address, check_readable, cpu, fp32, pack_panels, packable, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.patch_embed import PatchEmbedWeight
from kinema.ops.patch_embed.check import check_pack, checked


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
    check_pack(weight, bias)
    features, channels, pt, ph, pw = weight.shape
    native = cpu()
    panels = pack_panels(native, weight.flatten(1))
    return CpuWeight((pt, ph, pw), channels, features, panels.device, native, panels, packable(bias))


@checked
def patch_embed(
    x: torch.Tensor,
    weight: PatchEmbedWeight,
    grid: tuple[int, int, int],
    position: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    assert isinstance(weight, CpuWeight)
    check_readable("x", x)
    y = output_buffer(out, (x.shape[0], math.prod(grid), weight.out_features), torch.float32, x.device)
    position = fp32(position)
    arguments = PatchEmbedArguments(
        *x.shape,
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
