"""Every environment variable that kinema reads."""

from __future__ import annotations

import os


def traceback() -> bool:
    """KINEMA_TRACEBACK=1: the command line shows the whole traceback of an error, not one line."""
    return os.environ.get("KINEMA_TRACEBACK", "") not in ("", "0")
