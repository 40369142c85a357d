"""Memory for large buffers that are read again and again: packed weights, activations, scratch."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

CACHE_LINE = 64
HUGE_PAGE = 2 * 2**20


def aligned_bytes(count: int) -> torch.Tensor:
    """uint8 [count], aligned to a cache line; if it is at least a huge page, aligned to one and outside the heap.

    Huge pages, because TLB misses on small ones take part of the time in which a product reads its panels. Outside the
    heap, because there each panel would be put into the hole that its matrix left, and the next matrix would not fit.
    """
    if count >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        huge = _huge_pages(count)
        if huge is not None:
            return huge
    whole = torch.empty(count + CACHE_LINE, dtype=torch.uint8, device="cpu")
    start = -whole.data_ptr() % CACHE_LINE
    return whole[start : start + count]


def _huge_pages(count: int) -> torch.Tensor | None:
    """uint8 [count] at a huge page; None if the system cannot map that much: the heap's own error is then clearer."""
    try:
        mapping = mmap.mmap(-1, count + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None
    start = -torch.frombuffer(mapping, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    with suppress(OSError):  # a system without huge pages: these are small ones then
        # the remainder that does not fill a huge page stays on small ones, so that no more memory is taken than used
        mapping.madvise(mmap.MADV_HUGEPAGE, start, count // HUGE_PAGE * HUGE_PAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8, count=count, offset=start)
