"""How many threads native calls use, and torch's operators beside them; and what becomes of those in a forked child."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from kinema.ops.common.cores import usable_cores

_count: ContextVar[int | None] = ContextVar("thread_count", default=None)
_inherited: int | None = None  # in a forked child: what torch's number was before


@contextmanager
def using_threads(count: int | None, *, torch_alone: bool = False) -> Iterator[None]:
    """Native calls in this block use `count` threads, and so do torch's operators, or one if `torch_alone`.

    None: torch's own number, or as many as there are cores for this process where those are fewer.
    It applies to this thread (and context): others keep theirs, and so does a thread that starts meanwhile. After it
    torch's number is what it was. Not around a `yield`: the consumer of what is yielded would run in the block too.
    """
    if count is not None and count < 1:
        raise ValueError(f"threads is {count}, wanted 1 or more, or None for torch's own number")
    before = torch.get_num_threads()
    token = _count.set(count or thread_count())
    try:
        _set_for_this_thread(1 if torch_alone else thread_count())
        yield
    finally:
        _count.reset(token)
        _set_for_this_thread(before)


def thread_count() -> int:
    """How many threads a native call uses here."""
    return _count.get() or min(_inherited or torch.get_num_threads(), usable_cores())


def _set_for_this_thread(count: int) -> None:
    if _inherited is None and torch.get_num_threads() != count:
        for set_number in _setters():
            set_number(count)


@lru_cache(maxsize=1)
def _setters() -> tuple[Callable[[int], object], ...]:
    """What torch.set_num_threads does, for the calling thread only, in a microsecond.

    Torch's function also sets the number of threads that have not used torch yet. It is the only way where torch was
    built without OpenMP.
    """
    try:
        library = ctypes.CDLL(torch._C.__file__)
        own = [library.omp_set_num_threads]
    except (OSError, AttributeError):
        return (torch.set_num_threads,)
    if hasattr(library, "MKL_Set_Num_Threads_Local"):  # in lower case it is Fortran's, of a pointer
        own.append(library.MKL_Set_Num_Threads_Local)
    return tuple(own)


@lru_cache(maxsize=1)
def survive_forks() -> None:
    """From now on a child that Python forks can compute.

    OpenMP's threads stay behind in the parent, and the first of torch's operators that needs them would wait forever:
    in the child torch has one thread. Native calls have as many as in the parent, the library's own.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    global _inherited
    _inherited = _inherited or torch.get_num_threads()
    torch.set_num_threads(1)
