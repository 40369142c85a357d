"""`quantize` on the native CPU kernels: `norm_modulate` (csrc/cpu/rows.h) with neither a norm nor a modulation."""

from __future__ import annotations

import torch

from kinema.ops.common import Quantized, QuantKind
from kinema.ops.common.native import E4M3, I8, cpu, readable, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.norm_modulate.cpu import NormModulateArguments


def quantize(x: torch.Tensor, kind: QuantKind) -> Quantized:
    readable("x", x)
    channels = x.shape[-1]
    rows = x.reshape(-1, channels)
    data = torch.empty(x.shape, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    scale = torch.empty(*x.shape[:-1], 1)
    arguments = NormModulateArguments(
        batch=1,
        tokens=rows.shape[0],
        channels=channels,
        x=rows.data_ptr(),
        x_stride_s=rows.stride(0),
        out=data.data_ptr(),
        out_scale=scale.data_ptr(),
        out_dtype=I8 if kind == "int8" else E4M3,
        threads=thread_count(),
    )
    native = cpu()
    arguments.workspace = workspace(native.ask("kinema_norm_modulate_workspace", arguments))
    native.call("kinema_norm_modulate", arguments)
    return Quantized(data, scale)
