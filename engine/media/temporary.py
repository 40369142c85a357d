"""Temporary files beside a destination: known by their names, locked while they grow, removed when abandoned."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from pathlib import Path

_NAME = re.compile(r"\.kinema-[0-9a-f]{12}\.part")
# A run locks its file just after it makes it. Younger files are left alone, whatever their lock says.
ABANDONED_AFTER_SECONDS = 600


def temporary_name(folder: Path) -> Path:
    return folder / f".kinema-{secrets.token_hex(6)}.part"


def lock(place: Path) -> int | None:
    """Mark a file or folder as in use, until the descriptor is closed or the process ends, however it ends.

    None where the file system has no such locks; there, nothing is taken for abandoned either.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process has it, or there are no locks here
            os.close(descriptor)
        else:
            return descriptor
    return None


def remove_abandoned(folder: Path) -> None:
    """Remove this user's temporary files and folders that a killed run has left. Never raises."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(place: Path) -> None:
    found = os.lstat(place)
    ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    old = time.time() - found.st_mtime > ABANDONED_AFTER_SECONDS
    if not (ours and old and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))):
        return
    descriptor = lock(place)
    if descriptor is None:
        return
    try:
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink()
    finally:
        os.close(descriptor)
