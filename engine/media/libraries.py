"""The libraries that only some files need: kinema runs without them until such a file is read or written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kinema.errors import UnsupportedError

_PACKAGES = {"av": "av", "PIL": "pillow"}


@contextmanager
def needed(module: str, use: str) -> Iterator[None]:
    """Import inside this block what needs `module` ("av" or "PIL"); UnsupportedError says what to install for `use`."""
    try:
        yield
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != module:
            raise
        package = _PACKAGES[module]
        missing = isinstance(error, ModuleNotFoundError)
        remedy = f": pip install {package}" if missing else ", which does not load"
        raise UnsupportedError(f"{use} needs the library {package}{remedy} ({error})") from error
