"""What the host must know about a GPU to launch on it: its multiprocessors, and what its copy engine can address."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from kinema.ops.common.launch import architecture

# of the GPU that a recorded launch is for: A100, RTX 4090, H100, B200, RTX 5090; three in the interpreter
PROCESSORS = {0: 3, 80: 108, 89: 128, 90: 132, 100: 148, 120: 170}
# Ada and Hopper sum e4m3 products with fewer bits than fp32 has
IMPRECISE_FP8 = (89, 90)


def processors(device: torch.device) -> int:
    """Multiprocessors of the device, or of the GPU that a recorded launch is for."""
    if device.type == "cuda":
        return _multiprocessors(device.index or 0)
    arch = architecture(device)
    return PROCESSORS[max(known for known in PROCESSORS if known <= arch)]


def describable(t: torch.Tensor) -> bool:
    """Whether a TensorDescriptor can be made of t."""
    return aligned(t) and describable_layout(t.shape, t.stride(), t.itemsize)


def describable_layout(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """The same of any aligned tensor: channels dense, multiples of 16 bytes, nothing empty or repeated."""
    *outer, last = strides
    outer = [stride for size, stride in zip(shape[:-1], outer, strict=True) if size > 1]
    return last == 1 and 0 not in shape and all(s > 0 and s * itemsize % 16 == 0 for s in outer)


def aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether each begins where the copy engine can read."""
    return all(t is None or t.data_ptr() % 16 == 0 for t in tensors)


@lru_cache(maxsize=16)
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
