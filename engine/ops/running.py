"""What native work of a pipeline runs under: its threads, no gradients, and an end when a flag is set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TypeVar

import torch

from kinema.errors import Interrupted
from kinema.ops.common import interrupts
from kinema.ops.common.interrupts import StopFlag, stopped_by
from kinema.ops.common.threads import using_threads

T = TypeVar("T")


@contextmanager
def running(what: str, threads: int | None, *flags: StopFlag) -> Iterator[None]:
    """A block of native work; Interrupted, which says `what` it was, soon after one of the flags is set."""
    try:
        with torch.no_grad(), using_threads(threads), stopped_by(*flags):
            yield
    except interrupts.Interrupted as error:
        raise Interrupted(f"{what} was interrupted") from error


def each_within(make: Callable[[], AbstractContextManager[None]], items: Generator[T]) -> Iterator[T]:
    """The same items, each made in a block of its own: between them the caller is in none."""
    with closing(items):
        while True:
            with make():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
