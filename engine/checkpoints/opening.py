"""Opening untrusted files: nothing found at a path can make it hang, and errors say what was found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kinema.errors import CheckpointError, shown


def is_file(path: Path) -> bool:
    """Whether there is a regular file, or a link to one. False for a name that no file can have."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """The same for a folder."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> int:
    """A descriptor of a regular file, to be read. CheckpointError if there is none, or something else."""
    try:
        # an ordinary open would wait for the writer of a pipe, and the path may become one after any check
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{_named(path)} cannot be opened: {reason(error)}") from error
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise CheckpointError(f"{_named(path)} is not a file, but a folder, a device, a socket or a pipe")


def read_file(path: Path, most: int) -> bytes:
    """The whole of a file of at most `most` bytes."""
    file = open_file(path)
    try:
        with open(file, "rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise CheckpointError(f"{_named(path)} cannot be read: {reason(error)}") from error
    if len(data) > most:
        raise CheckpointError(f"{_named(path)} has more than {most} bytes: kinema reads no such file")
    return data


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; CheckpointError if it cannot be listed."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{_named(folder)} cannot be listed: {reason(error)}") from error


def reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _named(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 1000 else shown(text)
