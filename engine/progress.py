"""Progress on a terminal, silence elsewhere. It goes to stderr; results go to stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(
    total: int, show: bool | None = None, *, unit: str = "step", title: str | None = None
) -> Iterator[Callable[..., None]]:
    """Yields a function to call after each step, or with the number of steps done since the last call.

    show: None means only if stderr is a terminal.
    """
    if not _shown(show):
        yield lambda count=1: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, desc=title, leave=True) as bar:

        def advance(count: int = 1) -> None:
            bar.update(count)

        yield advance


@contextmanager
def waiting(title: str, show: bool | None = None) -> Iterator[None]:
    """Say what is going on while nothing can be counted, and take it back afterwards."""
    if not _shown(show):
        yield
        return
    _put(f"{title} ...")
    try:
        yield
    finally:
        _put("\r\x1b[K")  # back to where the line began, and erase it


def _shown(show: bool | None) -> bool:
    return sys.stderr.isatty() if show is None else show


def _put(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
