"""Signals wait until a step's parameters are consistent again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM that arrive within the block are handled when it ends. For blocks of milliseconds.

    Only Python's own handlers are held back, and only in the main thread, where Python runs them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in held:
            signal.signal(number, lambda number, frame: arrived.append((number, frame)))
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for number, frame in arrived:
        held[number](number, frame)
