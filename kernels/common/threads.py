"""How many threads native calls use, and what happens to torch's own in a forked child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")

_count: ContextVar[int | None] = ContextVar("thread_count", default=None)
_setting = threading.Lock()
_inherited: int | None = None  # in a forked child: what torch's number was before


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Native calls in this block use `count` threads, and so do torch's operators; None: torch's own number.

    It applies to this thread (and context): others keep theirs, and so does a thread that starts meanwhile. After it
    torch's number is what it was. Not around a `yield`: the consumer of what is yielded would run in the block too.
    """
    if count is None:
        yield
        return
    if count < 1:
        raise ValueError(f"threads is {count}, wanted 1 or more, or None for torch's own number")
    with _setting:  # a thread's first read takes the default, which another may be changing for a moment
        before = torch.get_num_threads()
    token = _count.set(count)
    try:
        _set_for_this_thread(count)
        yield
    finally:
        _count.reset(token)
        _set_for_this_thread(before)


def thread_count() -> int:
    """How many threads a native call uses here."""
    return _count.get() or _inherited or torch.get_num_threads()


def _set_for_this_thread(count: int) -> None:
    """torch.set_num_threads for the calling thread only.

    torch's function also sets the default of threads that have not used torch yet. Only such a thread, made for the
    purpose, can read that default and restore it.
    """
    if _inherited is not None or torch.get_num_threads() == count:
        return
    with _setting:
        default = _in_a_new_thread(torch.get_num_threads)
        torch.set_num_threads(count)
        if default != count:
            _in_a_new_thread(lambda: torch.set_num_threads(default))


def _in_a_new_thread(function: Callable[[], T]) -> T:
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@lru_cache(maxsize=1)
def survive_forks() -> None:
    """From now on a child that Python forks can compute.

    OpenMP's threads stay behind in the parent, and the first of torch's operators that needs them would wait forever:
    in the child torch has one thread. Native calls have as many as in the parent, the library's own.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    global _inherited, _setting
    _inherited = _inherited or torch.get_num_threads()
    _setting = threading.Lock()  # the thread that held the old one does not exist here
    torch.set_num_threads(1)
