"""Imports of a process that starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """What imports make stays: looking through it for garbage, again and again, takes a third of their time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.freeze()
            gc.unfreeze()  # all of it counts as old now, and the next collections pass it over
            gc.enable()
