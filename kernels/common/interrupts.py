"""Ending native calls early: by a flag that any thread may set, or by a signal such as ctrl-C.

Python runs no signal handler during a native call, which may take minutes. So the library polls from time to time
(kinema_control of csrc/include/kinema.h), on the thread that called it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident, main_thread
from typing import Any

POLL_MS = 40  # how often a call lets Python run signal handlers


class Control(ctypes.Structure):
    """kinema_control of csrc/include/kinema.h."""

    _fields_ = (
        ("flags", ctypes.c_void_p),
        ("flag_count", ctypes.c_int64),
        ("poll", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("interval_ms", ctypes.c_int32),
        ("skip_tasks", ctypes.c_int32),
    )


_Poll = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class Interrupted(Exception):
    """A StopFlag was set: the native call ended early, and what it was writing is incomplete."""


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
        self._addresses = (ctypes.c_void_p * len(flags))(*(ctypes.addressof(flag._value) for flag in flags))
        self.where = (ctypes.addressof(self._addresses), len(flags))
        self.reference = ctypes.byref(Control(*self.where))


_watched: ContextVar[_Watched | None] = ContextVar("watched_flags", default=None)


@contextmanager
def stopped_by(*flags: StopFlag) -> Iterator[None]:
    """Native calls in this block end with Interrupted once a flag is set, flags of an outer block included.

    Not around a `yield`: the consumer of what is yielded would run in the block too.
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


class _Listener:
    """What a native call of the main thread is given: flags, and a callback in which signal handlers run."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None  # by a handler
        self._answers = self._listen()
        next(self._answers)
        self._callback = _Poll(self._answers.send)
        self._control = Control(poll=ctypes.cast(self._callback, ctypes.c_void_p).value, interval_ms=POLL_MS)
        self.reference = ctypes.byref(self._control)
        self.watched: _Watched | None = None

    def watch(self, watched: _Watched | None) -> None:
        self.watched = watched
        self._control.flags, self._control.flag_count = watched.where if watched is not None else (None, 0)

    def _listen(self) -> Generator[int, None, None]:
        """Python runs handlers where it resumes after a `yield`, or loops back to one, and so inside the `try`.

        At the first line of a function they would run before any `try`, and what they raise would be lost: ctypes
        cannot pass it through the library.
        """
        try:
            while True:
                yield 0
        except GeneratorExit:
            return
        except BaseException as error:
            self.raised = error
        yield 1


# of the main thread, the only one that runs handlers; a handler that calls an op takes another one
_idle: list[_Listener] = []


def interruptible(function: Callable[..., Any], *arguments: Any) -> int:
    """The status of a library function that takes a kinema_control last; raises what a handler raised in it."""
    watched = _watched.get()
    if get_ident() != main_thread().ident:
        alone: int = function(*arguments, watched.reference if watched is not None else None)
        return alone
    try:
        listener = _idle.pop()
    except IndexError:  # the first, or within a handler
        listener = _Listener()
    if listener.watched is not watched:
        listener.watch(watched)
    try:
        status: int = function(*arguments, listener.reference)
    finally:
        if listener.raised is not None:
            raise listener.raised
    _idle.append(listener)
    return status
