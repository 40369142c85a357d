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
def running(
    what: str, threads: int | None, *flags: StopFlag, ops: Ops | None = None, pixels: int = 0
) -> Iterator[None]:
    """A block of native work; Interrupted, which says `what` it was, soon after one of the flags is set.

    ops: what computes it, of a clip of so many `pixels`: of a small one, where all ops are native, torch computes
    little, and takes one thread. More would spin for milliseconds after each of its operators, beside ours, and wait
    for one another while another program has their core: longer than such an operator takes.
    """
    native = ops is not None and ops.is_planned and all(choice.backend == "cpu" for choice in ops.plan.choices)
    try:
        with (
            torch.no_grad(),
            using_threads(threads, torch_alone=native and pixels <= SMALL_CLIP),
            stopped_by(*flags),
        ):
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
