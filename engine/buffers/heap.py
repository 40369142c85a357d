"""Memory that was freed, and that the C library still keeps."""

from __future__ import annotations

import ctypes
import sys


def return_freed_bytes() -> None:
    """Return freed memory to the system: glibc keeps it, gigabytes once a model is gone."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it
        if trim is not None:
            trim(0)
