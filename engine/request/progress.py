"""Progress on a terminal, silence elsewhere. It goes to stderr; results go to stdout.

The host's stderr may be None (no console), an object that knows no `isatty`, or one that cannot be written to any more:
a failure to show progress must never end the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def steps_bar(
    total: int, show: bool | None = None, *, unit: str = "step", title: str | None = None, leave: bool = True
) -> Iterator[Callable[..., None]]:
    """Yields a function to call after each step, or with the number of steps done since the last call.

    show: None means only if stderr is a terminal.
    """
    if not _shown(show):
        yield lambda count=1: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, desc=title, leave=leave, file=_Unfailing(sys.stderr)) as bar:

        def advance(count: int = 1) -> None:
            bar.update(count)

        yield advance


@contextmanager
def waiting(title: str, show: bool | None = None) -> Iterator[None]:
    """Show what is going on while nothing can be counted, and erase it afterwards."""
    if not _shown(show):
        yield
        return
    out = _Unfailing(sys.stderr)
    out.write(f"{title} ...")
    out.flush()
    try:
        yield
    finally:
        out.write("\r\x1b[K")  # back to where the line began, and erase it
        out.flush()


def say(text: str, show: bool | None = None) -> None:
    """A line that only someone who waits wants."""
    if _shown(show):
        _Unfailing(sys.stderr).write(f"{text}\n")


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; never raises, whatever the stream is."""
    try:
        return bool(stream.isatty())
    except Exception:  # None, closed, gone, or an object of the host's
        return False


def _shown(show: bool | None) -> bool:
    return sys.stderr is not None and (is_terminal(sys.stderr) if show is None else show)


class _Unfailing:
    """A stream whose write errors are ignored; in everything else that tqdm uses, the stream itself."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(Exception):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
