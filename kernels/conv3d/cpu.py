"""`conv3d` on the native CPU kernels, channels last: Winograd's F(4×4, 3×3) or F(2×2, 3×3) where that is faster
(csrc/cpu/winograd.h), else a product that gathers its taps (csrc/cpu/conv3d.h)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kinema.ops.common import Target
from kinema.ops.common.native import (
    ACTIVATIONS,
    Cpu,
    address,
    check_readable,
    cpu,
    fp32,
    pack_panels,
    packable,
    refuse_gradients,
    workspace,
)
from kinema.ops.common.pages import aligned_bytes
from kinema.ops.common.threads import thread_count
from kinema.ops.conv3d import Conv3dWeight
from kinema.ops.conv3d.check import checked, kernel_and_padding


class Conv3dArguments(ctypes.Structure):
    """kinema_conv3d_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("frames", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride_b", ctypes.c_int64),
        ("x_stride_c", ctypes.c_int64),
        ("x_stride_t", ctypes.c_int64),
        ("x_stride_h", ctypes.c_int64),
        ("x_stride_w", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("cache_stride_b", ctypes.c_int64),
        ("cache_stride_c", ctypes.c_int64),
        ("cache_stride_t", ctypes.c_int64),
        ("cache_stride_h", ctypes.c_int64),
        ("cache_stride_w", ctypes.c_int64),
        ("kernel_t", ctypes.c_int64),
        ("kernel_h", ctypes.c_int64),
        ("kernel_w", ctypes.c_int64),
        ("stride_t", ctypes.c_int64),
        ("stride_h", ctypes.c_int64),
        ("stride_w", ctypes.c_int64),
        ("pad_top", ctypes.c_int64),
        ("pad_bottom", ctypes.c_int64),
        ("pad_left", ctypes.c_int64),
        ("pad_right", ctypes.c_int64),
        ("upsample", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("activation", ctypes.c_int32),
        ("winograd", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


# With fewer channels to sum over, the transforms cost more than they save.
WINOGRAD_CHANNELS = 8
# F(4×4) takes four times a kernel's memory, F(2×2) 16/9: larger kernels, which see smaller pictures, use F(2×2).
# 16 MB, for 192 → 192 channels too, would decode Wan 2.1's clips 8 to 14 % faster and take 53 MB more.
LARGE_TILE_BYTES = 8 << 20
# Up to this many output channels (a picture's) have a direct kernel of their own, csrc/cpu/conv3d_few.h.
FEW_OUTPUTS = 3


@dataclass(frozen=True)
class CpuWeight(Conv3dWeight):
    """panels: uint8, laid out by the instruction set of `cpu`, taps before channels; bias: [Cout] fp32.

    winograd: outputs per side of the tiles that the weights are transformed for; 0: untransformed.
    """

    cpu: Cpu
    winograd: int
    panels: torch.Tensor
    bias: torch.Tensor | None


def pack_conv3d(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] | None = None,
    target: Target,
) -> CpuWeight:
    kernel, padding = kernel_and_padding(weight, bias, stride, padding)
    return _pack(kernel, bias, stride, padding, winograd=_tile(kernel.shape) if stride == (1, 1, 1) else 0)


def _tile(kernel: Sequence[int]) -> int:
    """Outputs per side of a Winograd tile, for a kernel [Cout, Cin, (kt,) kh, kw] of stride 1; 0 if it is direct."""
    out, into, *taps, height, width = kernel
    if (height, width) != (3, 3) or into < WINOGRAD_CHANNELS or out <= FEW_OUTPUTS:
        return 0
    # a kernel without temporal taps follows an upsampling: F(2×2) then needs only 9 of its 16 products
    small = 36 * 4 * math.prod(taps) * out * into <= LARGE_TILE_BYTES
    return 4 if math.prod(taps) > 1 and small else 2


def packed_bytes(kernel: Sequence[int]) -> int:
    """Bytes of a packed kernel [Cout, Cin, (kt,) kh, kw] of stride 1, if its panels are full."""
    tile = _tile(kernel)
    return 4 * math.prod(kernel) * ((tile + 2) ** 2 if tile else 9) // 9


def pack_direct(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] | None = None,
    target: Target,
) -> CpuWeight:
    """`pack_conv3d` without Winograd's transforms."""
    kernel, padding = kernel_and_padding(weight, bias, stride, padding)
    return _pack(kernel, bias, stride, padding, winograd=0)


def _pack(
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int, int],
    *,
    winograd: int,
) -> CpuWeight:
    cout, cin, kt, kh, kw = kernel.shape
    native, rows = cpu(), kernel.movedim(1, -1)  # [Cout, kt, kh, kw, Cin]
    panels = _pack_winograd(native, rows, winograd) if winograd else pack_panels(native, rows.flatten(1))
    return CpuWeight(cin, cout, (kt, kh, kw), stride, padding, panels.device, native, winograd, panels, packable(bias))


def _pack_winograd(native: Cpu, rows: torch.Tensor, tile: int) -> torch.Tensor:
    """A kernel [Cout, kt, 3, 3, Cin], transformed for tiles of tile×tile outputs and packed in fp32."""
    refuse_gradients(rows)
    rows = packable(rows)
    shape = (rows.shape[-1], rows.shape[0], rows.shape[1], tile)
    panels = aligned_bytes(native.size("kinema_winograd_packed_bytes", *shape))
    native.pack("kinema_winograd_pack", *shape, rows.data_ptr(), panels.data_ptr())
    return panels


@checked
def conv3d(
    x: torch.Tensor,
    weight: Conv3dWeight,
    shape: tuple[int, int, int, int, int],
    *,
    norm: torch.Tensor | None,
    activation: Literal["none", "silu"],
    upsample: int,
    cache: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    assert isinstance(weight, CpuWeight)
    check_readable("x", x)
    batch, channels, frames, height, width = x.shape
    if residual is not None:
        residual = residual.float().movedim(1, -1).contiguous()
    # channels last in memory; an `out` with that layout is written directly
    direct = out is not None and out.movedim(1, -1).is_contiguous()
    if out is not None and direct:
        y = out.movedim(1, -1)
    else:
        y = torch.empty((batch, *shape[2:], weight.out_channels), dtype=torch.float32, device=x.device)
    # a cache is read and written in fp32
    held = cache.float() if cache is not None else None
    arguments = Conv3dArguments(
        batch,
        channels,
        weight.out_channels,
        frames,
        height,
        width,
        x.data_ptr(),
        *x.stride(),
        address(norm := fp32(norm)),
        address(held),
        *(held.stride() if held is not None else (0,) * 5),
        *weight.kernel,
        *weight.stride,
        *weight.padding,
        upsample,
        weight.panels.data_ptr(),
        address(weight.bias),
        address(residual),
        y.data_ptr(),
        None,
        ACTIVATIONS[activation],
        weight.winograd,
        thread_count(),
    )
    arguments.workspace = workspace(weight.cpu.ask("kinema_conv3d_workspace", arguments))
    weight.cpu.call("kinema_conv3d", arguments)
    if held is not None and held is not cache and cache is not None:
        cache.copy_(held)
    result = y.movedim(-1, 1)
    return result if out is None else out if direct else out.copy_(result)
