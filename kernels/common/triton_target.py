"""Where Triton kernels run: asked by the plan, so triton itself is not imported here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch

from kinema.ops.common.capability import Implementation, Target

INTERPRET_VARIABLE = "TRITON_INTERPRET"
OLDEST_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)


def interpreted() -> bool:
    """Whether Triton runs kernels in Python on the CPU, as it decides when it is first imported."""
    return os.environ.get(INTERPRET_VARIABLE) == "1"


def triton_unsupported(target: Target) -> list[str]:
    """Why no Triton kernel runs on `target`."""
    if importlib.util.find_spec("triton") is None:
        return ["triton is not installed"]
    if target.device.type == "cpu":
        return [] if interpreted() else [f"needs a GPU; the device is cpu ({INTERPRET_VARIABLE}=1 runs it, slowly)"]
    if target.device.type == "meta":
        return []  # nothing runs: an op is its own fake there
    if target.device.type != "cuda":
        return [f"needs a CUDA or ROCm GPU; the device is {target.device.type}"]
    if not torch.cuda.is_available():
        return ["torch sees no GPU"]
    if interpreted():
        return [f"{INTERPRET_VARIABLE}=1 is for the CPU; unset it"]
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(target.device)
        if capability < OLDEST_CAPABILITY:
            return [f"needs compute capability {_dotted(OLDEST_CAPABILITY)}, the GPU has {_dotted(capability)}"]
    return []


def fp8_unsupported(target: Target) -> list[str]:
    """Why no Triton kernel that multiplies e4m3 runs on `target`."""
    reasons = triton_unsupported(target)
    if reasons or target.device.type != "cuda" or torch.version.hip is not None:
        return reasons
    capability = torch.cuda.get_device_capability(target.device)
    if capability < FP8_CAPABILITY:
        return [f"e4m3 needs compute capability {_dotted(FP8_CAPABILITY)}, the GPU has {_dotted(capability)}"]
    return []


def triton_reluctant(target: Target) -> list[str]:
    """The interpreter proves kernels; it is no way to run a model."""
    return ["interpreted Triton is for tests"] if target.device.type == "cpu" else []


def triton_implementation(op: str, unsupported: Callable[[Target], list[str]] = triton_unsupported) -> Implementation:
    """The record of `kernels/<op>/triton.py`."""
    return Implementation("triton", f"kinema.ops.{op}.triton", unsupported, triton_reluctant)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
