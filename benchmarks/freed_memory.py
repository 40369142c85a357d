"""Memory that a call has freed, kept for the next one while calls are timed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kinema.buffers.heap import return_freed_bytes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@contextmanager
def keeping_freed_bytes() -> Iterator[None]:
    """For timing: freed memory stays with the process, so that no call waits for the pages of its result."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        yield
        return
    set_option(M_MMAP_MAX, 0)
    set_option(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        set_option(M_MMAP_MAX, 2**16)  # glibc's own numbers
        set_option(M_TRIM_THRESHOLD, 2**17)
        return_freed_bytes()
