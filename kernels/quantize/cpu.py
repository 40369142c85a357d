"""`quantize` on the native CPU kernels: `norm_modulate` (csrc/cpu/rows.h) with neither a norm nor a modulation."""

from __future__ import annotations

import torch

from kinema.ops.common import Quantized, QuantKind
from kinema.ops.common.native import E4M3, I8, check_readable, cpu, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.norm_modulate.cpu import NormModulateArguments
from kinema.ops.quantize.check import checked


@checked
def quantize(x: torch.Tensor, kind: QuantKind) -> Quantized:
    check_readable("x", x)
    channels = x.shape[-1]
    rows = x.reshape(-1, channels)
    quantized = Quantized.empty(x.shape, kind, x.device)
    arguments = NormModulateArguments(
        batch=1,
        tokens=rows.shape[0],
        channels=channels,
        x=rows.data_ptr(),
        x_stride_s=rows.stride(0),
        out=quantized.data.data_ptr(),
        out_scale=quantized.scale.data_ptr(),
        out_dtype=I8 if kind == "int8" else E4M3,
        threads=thread_count(),
    )
    native = cpu()
    arguments.workspace = workspace(native.ask("kinema_norm_modulate_workspace", arguments))
    native.call("kinema_norm_modulate", arguments)
    return quantized
