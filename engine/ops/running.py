"""What native work of a pipeline runs under: its threads, no gradients, and an end when a flag is set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TypeVar

import torch

from kinema.errors import Interrupted
from kinema.ops import Ops
from kinema.ops.common import interrupts
from kinema.ops.common.interrupts import StopFlag, stopped_by
from kinema.ops.common.threads import using_threads

T = TypeVar("T")
SMALL_CLIP = 1 << 20  # pixels of all frames


@contextmanager
def running(what: str, threads: int | None, *flags: StopFlag, torch_alone: bool = False) -> Iterator[None]:
    """A block of native work; Interrupted, which says `what` it was, soon after one of the flags is set.

    torch_alone: torch's operators take one thread.
    """
    try:
        with torch.no_grad(), using_threads(threads, torch_alone=torch_alone), stopped_by(*flags):
            yield
    except interrupts.Interrupted as error:
        raise Interrupted(f"{what} was interrupted") from error


def leaves_little_to_torch(ops: Ops, pixels: int) -> bool:
    """Whether one thread is best for what torch computes of a clip: all ops are native, and the clip is small.

    Its threads would spin for milliseconds after each operator, beside ours, and wait for one another while another
    program has their core: longer than such an operator takes.
    """
    return pixels <= SMALL_CLIP and ops.is_planned and all(choice.backend == "cpu" for choice in ops.plan.choices)


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
