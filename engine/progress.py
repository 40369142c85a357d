"""A progress bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(total: int, show: bool | None = None, *, unit: str = "step") -> Iterator[Callable[[], None]]:
    """Yields a function to call after each step. show: None means only if stderr is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit) as bar:
        yield lambda: bar.update() and None
