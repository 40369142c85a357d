"""Ending native calls early: by a flag that any thread may set, or by a signal such as ctrl-C.

Python runs no signal handler while a native call goes on, which may take minutes. So the library asks from time to time
(kinema_control of csrc/include/kinema.h), on the thread that called it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Interrupted(Exception):
    """A StopFlag was set: the native call was left early, and what it was writing is incomplete."""


class StopFlag:
    """Set by any thread; native calls that watch it (`stopped_by`) then end within a fraction of a second."""

    def __init__(self) -> None:
        self._value = ctypes.c_int32(0)

    def set(self) -> None:
        self._value.value = 1

    def clear(self) -> None:
        self._value.value = 0

    @property
    def is_set(self) -> bool:
        return self._value.value != 0


class _Watched:
    """Flags, and where the library reads them."""

    def __init__(self, flags: tuple[StopFlag, ...]) -> None:
        self.flags = flags
        self.addresses = (ctypes.c_void_p * len(flags))(*(ctypes.addressof(flag._value) for flag in flags))


_watched: ContextVar[_Watched | None] = ContextVar("watched_flags", default=None)


@contextmanager
def stopped_by(*flags: StopFlag) -> Iterator[None]:
    """Native calls in this block end with Interrupted once a flag is set, those of an outer block included.

    Not around a `yield`: whoever takes what is yielded would be in the block too.
    """
    outer = _watched.get()
    token = _watched.set(_Watched((*(outer.flags if outer is not None else ()), *flags)))
    try:
        yield
    finally:
        _watched.reset(token)


def check_interrupted() -> None:
    """Raises Interrupted if a flag is set: for loops between native calls."""
    watched = _watched.get()
    if watched is not None and any(flag.is_set for flag in watched.flags):
        raise Interrupted("stopped by a flag")
