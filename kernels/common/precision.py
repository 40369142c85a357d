"""What `precision=` means: the dtype that weights are stored in, and that of activations between ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kinema.ops.common.quantized import QuantKind

Storage = Literal["planned", "wide", "exact", "convolution", "fp32", "table"]
"""How a model keeps a tensor. Matrices of linears: "planned" as the precision says, "wide" never in 8 bits, "exact" in
fp32. "convolution": as the implementation of conv3d packs it. "fp32": unpacked. "table": its rows stay in its file.
"""


@dataclass(frozen=True)
class Precision:
    """The number formats of one model on one kind of device.

    `weights` is the storage of the blocks' linear weights, `activations` the dtype between ops, and
    `quantize_activations` the per-token format of a linear's input (None: not quantised). Norms, modulation
    tables, position tables and the time embedder are always fp32, as the published models keep them.
    """

    name: str
    weights: torch.dtype
    activations: torch.dtype
    quantize_activations: QuantKind | None = None


def _precisions(low: torch.dtype | None) -> dict[str, Precision]:
    """`low` is the dtype between ops of the low-precision modes; None keeps fp32 there."""
    fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
    on_cpu = low is None
    return {
        "fp32": Precision("fp32", fp32, fp32),
        "bf16": Precision("bf16", bf16, low or fp32),
        "fp16": Precision("fp16", fp16, fp32 if on_cpu else fp16),
        "fp8": Precision("fp8", torch.float8_e4m3fn, low or fp32, None if on_cpu else "fp8"),
        "int8": Precision("int8", torch.int8, low or fp32, "int8"),
    }


# A CPU widens stored weights in registers and computes in fp32; its bf16 products, where it has them, round their
# inputs themselves. A GPU has tensor cores for the narrow formats.
PRECISIONS: dict[str, dict[str, Precision]] = {
    "cpu": _precisions(low=None),
    "cuda": _precisions(low=torch.bfloat16),
}
