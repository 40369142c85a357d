"""What a verb says on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from kinema.errors import OutputError


def emit(text: str) -> None:
    """Print `text` and see it off: a full disk behind a redirection is an error, not a shorter report."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error


def emit_json(report: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    emit(json.dumps(report))


def drop_output() -> None:
    """Let go of what standard output has not taken: Python would fail on it once more at its exit."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
