"""PyTorch's matrix products: where they run, and where they are faster than Triton's. The plan imports this."""

from __future__ import annotations

import torch

from kinema.ops.common import Implementation, Target
from kinema.ops.common.launch import architecture, is_hip
from kinema.ops.common.triton_target import OLDEST_FP8, triton_unsupported

HOPPER = 90
# By the oldest architecture of a family: the first torch that multiplies e4m3 there with a scale per row and column
# (pytorch/pytorch#145676, #155991, and RowwiseScaledMM.cu between them).
ROWWISE = {89: (2, 7), 90: (2, 6), 100: (2, 8), 120: (2, 9)}


def torch_version() -> tuple[int, int]:
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)


def torch_unsupported(target: Target) -> list[str]:
    """Why PyTorch alone does not run `linear` on `target`."""
    if target.precision.quantize_activations != "fp8" or target.device.type == "cpu":
        return []
    if is_hip():
        return ["torch._scaled_mm is used on NVIDIA GPUs only"]
    arch = architecture(target.device)
    if arch < OLDEST_FP8:
        return [f"e4m3 needs compute capability 8.9, the GPU has {arch // 10}.{arch % 10}"]
    needed = ROWWISE[max(known for known in ROWWISE if known <= arch)]
    if torch_version() < needed:
        version = ".".join(map(str, needed))
        return [f"torch._scaled_mm with a scale per row is there from torch {version} on; this is {torch.__version__}"]
    return []


def torch_not_preferred(target: Target) -> list[str]:
    """A library's product needs a separate pass for the epilogue, and Triton's products are as fast."""
    if target.device.type == "cpu":
        return ["on a CPU the reference makes the same calls"]
    if triton_unsupported(target):
        return []
    fp8 = target.precision.quantize_activations == "fp8"
    if fp8 and architecture(target.device) == HOPPER:
        return []  # faster than Triton once on an H200, with and without GELU; `make gpu-session` asks again
    epilogues = "its activation, gate and residual are separate passes"
    speed = ", and Triton multiplies e4m3 at 1125 TFLOP/s on an H100 (pytorch/FBGEMM#2546)" if fp8 else ""
    return [f"Triton is preferred: here {epilogues}{speed}"]


TORCH = Implementation("torch", "kinema.ops.linear.scaled_mm", torch_unsupported, torch_not_preferred)
