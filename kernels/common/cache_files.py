"""The folder of what kinema finds out about a machine and keeps: $KINEMA_CACHE, or ~/.cache/kinema."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

FOLDER_VARIABLE = "KINEMA_CACHE"


def cache_folder() -> Path:
    """It need not exist."""
    return Path(os.environ.get(FOLDER_VARIABLE) or os.path.expanduser("~/.cache/kinema"))


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and its folder. Of writers that race the last one wins. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as written:
            written.write(text)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
