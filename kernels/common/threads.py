"""How many threads native calls take, and what becomes of torch's own in a forked child."""

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
    """Native calls in this block take `count` threads, and so do torch's operators; None: torch's own number.

    The block is this thread's (and context's): others keep theirs, and so does a thread that starts meanwhile. Behind
    it torch's number is what it was. Not around a `yield`: whoever takes what is yielded would be in the block too.
    """
    if count is None:
        yield
        return
    if count < 1:
        raise ValueError(f"threads is {count}, wanted 1 or more, or None for torch's own number")
    with _setting:  # a thread's first look takes the default, which another may be changing for a moment
        before = torch.get_num_threads()
    token = _count.set(count)
    try:
        _set_for_this_thread(count)
        yield
    finally:
        _count.reset(token)
        _set_for_this_thread(before)


def thread_count() -> int:
    """How many threads a native call takes here."""
    return _count.get() or _inherited or torch.get_num_threads()


def _set_for_this_thread(count: int) -> None:
    """torch.set_num_threads, of the calling thread alone.

    It sets the default of threads that have not used torch yet as well. Such a thread, made for the purpose, is also
    the only one that can read the default and put it back.
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

    OpenMP's threads stay behind with the parent, and the first of torch's operators that wants them would wait for
    ever: in the child torch has one thread. Native calls have as many as in the parent, of the library's own.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    global _inherited, _setting
    _inherited = _inherited or torch.get_num_threads()
    _setting = threading.Lock()  # whoever held the old one is not here
    torch.set_num_threads(1)
