"""What a verb says on standard output and standard error, which may be closed or anything that a host put there."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kinema.errors import OutputError, one_line, printable


def emit(text: str) -> None:
    """Print the lines of `text`, escaping what would control a terminal (names come from files), and flush them: a full
    disk behind a redirection is an error, not a shorter report.
    """
    try:
        print("\n".join(map(printable, text.split("\n"))))
        flush_output()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error
    except Exception:  # a host closed it, or put something there that cannot be written to
        return


def emit_json(report: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    emit(json.dumps(report))


def complain(message: str) -> None:
    """Say what went wrong, in one line on standard error, if that can be written to."""
    if sys.stderr is not None:  # print would go to standard output
        with suppress(Exception):
            print(one_line(message), file=sys.stderr, flush=True)


def flush_output() -> None:
    """Flush standard output. Where there is none (`>&-`), nobody wanted what was printed."""
    try:
        sys.stdout.flush()
    except OSError:
        raise
    except Exception:  # closed by a host, or an object of its own that raises anything
        return


def drop_output() -> None:
    """Discard what standard output has not accepted: Python would fail on it again at exit."""
    with suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def show_anything() -> None:
    """A file name may hold what the terminal cannot show; a message about it must not fail on that."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(ValueError):  # closed
                stream.reconfigure(errors="backslashreplace")


def open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed: a file that is opened next must not become it.

    For a process of our own: what libraries write to descriptor 2 would land in the video.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
