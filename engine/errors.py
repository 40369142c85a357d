"""The errors that users see. Each message says what was given, what was wanted and what to do.

Much of a message may come from an untrusted file: tensor names, config values. Whatever the file holds, the message is
one line of bounded length that cannot control a terminal.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterable

MAX_MESSAGE = 4000
MAX_ITEM = 200

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 3, 12, 12, 12
_REPR.maxstring = _REPR.maxother = MAX_ITEM


class _OneLine:
    """Its text is safe to print, whoever prints it."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class KinemaError(_OneLine, Exception):
    """Base of every error that kinema raises on purpose; the CLI prints it as one line and exits with 1."""


class RequestError(KinemaError, ValueError):
    """A request asks for something that this model or machine cannot do."""


class CheckpointError(KinemaError, ValueError):
    """A model folder is incomplete, damaged, unsafe or not of a known family."""


class UnsupportedError(KinemaError, ValueError):
    """A forced backend, precision or device cannot run here."""


class OutputError(KinemaError, OSError):
    """A result could not be written; no partial file remains."""


class Interrupted(KinemaError):
    """A callback or a signal stopped the run."""


class KinemaWarning(_OneLine, UserWarning):
    """Something is not done as it was asked for; the CLI prints it as one line and goes on."""


def warn(text: str, *, stacklevel: int = 1) -> None:
    """Warn in one line. A host whose standard error is broken loses the warning and nothing else."""
    try:
        warnings.warn(one_line(text), KinemaWarning, stacklevel=stacklevel + 1)
    except KinemaWarning:  # the host's filters turn warnings into errors
        raise
    except Exception:  # from a broken stream, or the host's own showwarning
        return


def one_line(text: str) -> str:
    """`text` with its lines joined, safe for a terminal, its middle cut out if it is longer than MAX_MESSAGE."""
    lines = cut(text, MAX_MESSAGE).splitlines()
    return cut(printable(" ".join(line.strip() for line in lines)), MAX_MESSAGE)


def printable(text: str) -> str:
    """`text` with unprintable characters escaped: control characters, bidirectional marks, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning and end in about `limit` characters: a message ends with what to do."""
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end]} [... {len(text) - limit} characters ...] {text[-end:]}"


def shown(value: object) -> str:
    """The repr of any value, bounded in length, for a message."""
    try:
        return cut(_REPR.repr(value), MAX_ITEM)
    except Exception:  # an integer of 5,000 digits has no repr
        return f"a value of type {type(value).__name__}"


def listed(items: Iterable[str], separator: str = ", ", most: int = 40) -> str:
    """The first `most` items, each of bounded length, and how many more there are."""
    found = list(items)
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return separator.join([*(cut(item, MAX_ITEM) for item in found[:most]), *more])
