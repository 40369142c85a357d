"""`qk_norm_rope` on the native CPU kernels (csrc/cpu/rows.h)."""

from __future__ import annotations

import ctypes

import torch

from kinema.ops.common import Rope, output_buffer
from kinema.ops.common.native import DTYPES, address, check_readable, cpu, fp32, rope_table, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.qk_norm_rope.check import checked

NORMS = {"rms": 1, "layer": 2}


class QkNormRopeArguments(ctypes.Structure):
    """kinema_qk_norm_rope_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride_b", ctypes.c_int64),
        ("x_stride_s", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("rope_stride_b", ctypes.c_int64),
        ("rope_start", ctypes.c_int64),
        ("rope_tokens", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride_b", ctypes.c_int64),
        ("out_stride_n", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("norm", ctypes.c_int32),
        ("across_heads", ctypes.c_int32),
        ("operands", ctypes.c_int32),
        ("interleaved", ctypes.c_int32),
        ("out_dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@checked
def qk_norm_rope(
    x: torch.Tensor, heads: int, norm: HeadNorm | None, rope: Rope | None, out: torch.Tensor | None
) -> torch.Tensor:
    check_readable("x", x)
    batch, tokens, channels = x.shape
    y = output_buffer(out, (batch, heads, tokens, channels // heads), torch.float32, x.device, contiguous=2)
    cosines, sines, rope_b, start, rotated = rope_table(rope)
    weight, bias = (fp32(norm.weight), fp32(norm.bias)) if norm is not None else (None, None)
    arguments = QkNormRopeArguments(
        batch,
        tokens,
        heads,
        channels // heads,
        x.data_ptr(),
        *x.stride()[:2],
        address(weight),
        address(bias),
        address(cosines),
        address(sines),
        rope_b,
        start,
        rotated,
        y.data_ptr(),
        *y.stride()[:2],
        None,
        norm.eps if norm is not None else 0.0,
        NORMS[norm.kind] if norm is not None else 0,
        norm is not None and norm.across_heads,
        norm.operands if norm is not None else 1,
        rope is not None and rope.interleaved,
        DTYPES[y.dtype],
        thread_count(),
    )
    native = cpu()
    if y.dtype != torch.float32:
        arguments.workspace = workspace(native.ask("kinema_qk_norm_rope_workspace", arguments))
    native.call("kinema_qk_norm_rope", arguments)
    return y
