"""`unpatchify` on the native CPU kernels (csrc/cpu/patches.h)."""

from __future__ import annotations

import ctypes

import torch

from kinema.ops.common import output_buffer
from kinema.ops.common.arguments import check_channels_dense
from kinema.ops.common.native import check_readable, cpu
from kinema.ops.common.threads import thread_count
from kinema.ops.unpatchify import PatchOrder
from kinema.ops.unpatchify.check import checked


class UnpatchifyArguments(ctypes.Structure):
    """kinema_unpatchify_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("grid_t", ctypes.c_int64),
        ("grid_h", ctypes.c_int64),
        ("grid_w", ctypes.c_int64),
        ("patch_t", ctypes.c_int64),
        ("patch_h", ctypes.c_int64),
        ("patch_w", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride_b", ctypes.c_int64),
        ("x_stride_s", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("channel_first", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@checked
def unpatchify(
    x: torch.Tensor,
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
    order: PatchOrder,
    shape: tuple[int, int, int, int, int],
    out: torch.Tensor | None,
) -> torch.Tensor:
    check_readable("x", x)
    check_channels_dense("x", x)
    y = output_buffer(out, shape, torch.float32, x.device, contiguous=5)
    arguments = UnpatchifyArguments(
        *shape[:2],
        *grid,
        *patch,
        x.data_ptr(),
        *x.stride()[:2],
        y.data_ptr(),
        order == "channel_first",
        thread_count(),
    )
    cpu().call("kinema_unpatchify", arguments)
    return y
