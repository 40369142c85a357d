"""`unpatchify` on the native CPU kernels (csrc/cpu/patches.h)."""

from __future__ import annotations

import ctypes
import math

import torch

from kinema.ops.common import claim
from kinema.ops.common.native import cpu, readable
from kinema.ops.common.threads import thread_count
from kinema.ops.unpatchify import PatchOrder


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


def unpatchify(
    x: torch.Tensor,
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
    *,
    order: PatchOrder = "patch_first",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    batch, tokens, features = x.shape
    if tokens != math.prod(grid) or features % math.prod(patch):
        raise ValueError(f"tokens {tuple(x.shape)} do not fill a grid of {grid} with patches of {patch}")
    if order not in ("patch_first", "channel_first"):
        raise ValueError(f"unknown order {order!r}: wanted 'patch_first' or 'channel_first'")
    readable("x", x)
    channels = features // math.prod(patch)
    (t, h, w), (pt, ph, pw) = grid, patch
    y = claim(out, (batch, channels, t * pt, h * ph, w * pw), torch.float32, x.device, contiguous=5)
    arguments = UnpatchifyArguments(
        batch,
        channels,
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
