"""Whether two tensors overlap in memory: a kernel must not write what it still reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

WORK = 10_000  # steps of the search for a shared element; what it cannot decide counts as shared


def outside(first: int, end: int, t: torch.Tensor) -> bool:
    """Whether all of t lies before the address `first`, or from `end` on."""
    start = t.data_ptr()
    if start >= end:
        return True
    if start >= first and t.numel():
        return False
    return span(t)[1] <= first


def span(t: torch.Tensor) -> tuple[int, int]:
    """The addresses of t's first byte and of the byte after its last one."""
    first = t.data_ptr()
    if t.is_contiguous():
        return first, first + t.nbytes
    if not t.numel():
        return first, first
    reach = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        reach += (size - 1) * stride
    return first, first + reach * t.itemsize


def share(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a and b have an element's memory in common. Different columns of one buffer do not."""
    first, end = span(a)
    if outside(first, end, b):
        return False
    search: Any = np.shares_memory  # its stub knows no limit
    try:
        return bool(search(np.asarray(_Memory(a)), np.asarray(_Memory(b)), max_work=WORK))
    except np.exceptions.TooHardError:
        return True


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a and b, of one shape, are views of the same elements in the same order."""
    if a.data_ptr() != b.data_ptr() or a.dtype != b.dtype:
        return False
    return a.stride() == b.stride() or _steps(a) == _steps(b)


def has_internal_overlap(t: torch.Tensor) -> bool:
    """Whether two elements of t may share memory, as those of an expanded axis do."""
    if t.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(_steps(t)):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _steps(t: torch.Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the axes that have more than one element."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


class _Memory:
    """A tensor's addresses for NumPy, which compares them and reads nothing: they may be on a GPU."""

    def __init__(self, t: torch.Tensor) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{t.itemsize}",
            "shape": tuple(t.shape),
            "strides": tuple(stride * t.itemsize for stride in t.stride()),
            "data": (t.data_ptr(), False),
        }
