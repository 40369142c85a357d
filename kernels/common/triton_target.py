"""Where Triton kernels run. The plan imports this, so triton itself is not imported here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch

from kinema.ops.common.capability import Implementation, Target
from kinema.ops.common.launch import INTERPRETER, architecture, is_hip

INTERPRET_VARIABLE = "TRITON_INTERPRET"
OLDEST = 80  # compute capability 8.0
OLDEST_FP8 = 89


def interpreted() -> bool:
    """Whether Triton runs kernels in Python on the CPU, which it decides when it is first imported."""
    return os.environ.get(INTERPRET_VARIABLE) == "1"


def triton_unsupported(target: Target) -> list[str]:
    """Why no Triton kernel runs on `target`."""
    if importlib.util.find_spec("triton") is None:
        return ["triton is not installed"]
    if target.device.type == "cpu":
        return [] if interpreted() else [f"needs a GPU; the device is cpu ({INTERPRET_VARIABLE}=1 runs it, slowly)"]
    if target.device.type == "meta":  # nothing runs: an op is its own fake there, or recorded for an architecture
        return _too_old(target, "Triton", OLDEST)
    if target.device.type != "cuda":
        return [f"needs a CUDA or ROCm GPU; the device is {target.device.type}"]
    if not torch.cuda.is_available():
        return ["torch sees no GPU"]
    if interpreted():
        return [f"{INTERPRET_VARIABLE}=1 is for the CPU; unset it"]
    return _too_old(target, "Triton", OLDEST)


def fp8_unsupported(target: Target) -> list[str]:
    """Why no Triton kernel that multiplies or writes e4m3 runs on `target`."""
    reasons = triton_unsupported(target)
    if reasons or target.device.type == "cpu":
        return reasons
    if is_hip():
        return ["e4m3 is emulated on CDNA3, whose 8-bit format is another one; int8 is not"]
    return _too_old(target, "e4m3", OLDEST_FP8)


def quantize_unsupported(target: Target) -> list[str]:
    """Why no Triton kernel that writes the precision's 8-bit activations runs on `target`; every GPU has int8."""
    return fp8_unsupported(target) if target.precision.quantize_activations == "fp8" else triton_unsupported(target)


def _too_old(target: Target, what: str, oldest: int) -> list[str]:
    arch = architecture(target.device)
    if arch == INTERPRETER or is_hip() or arch >= oldest:
        return []
    return [f"{what} needs compute capability {_dotted(oldest)}, the GPU has {_dotted(arch)}"]


def triton_not_preferred(target: Target) -> list[str]:
    """The interpreter is for testing kernels, not for running models."""
    return ["interpreted Triton is for tests"] if target.device.type == "cpu" else []


def triton_implementation(op: str, unsupported: Callable[[Target], list[str]] = triton_unsupported) -> Implementation:
    """The record of `kernels/<op>/triton.py`."""
    return Implementation("triton", f"kinema.ops.{op}.triton", unsupported, triton_not_preferred)


def _dotted(arch: int) -> str:
    return f"{arch // 10}.{arch % 10}"
