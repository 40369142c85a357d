"""Opening a file that a user names: only regular files, which end and never block."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from kinema.errors import KinemaError, RequestError

StrPath = str | os.PathLike[str]

_POINTER = b"version https://git-lfs"

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def existing(path: StrPath, kind: str) -> Path:
    """The path, if something is there; RequestError otherwise. kind: image or video, for the message."""
    text = os.fsdecode(path)
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        raise RequestError(f"cannot read {kind} {text}: kinema does not download; save it to a file and give its path")
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte in it
        raise RequestError(f"cannot read {kind} {text!r}: there is no such file") from error
    except OSError as error:
        raise unreadable(kind, text, error) from error
    return Path(text)


@contextmanager
def open_file(path: Path, kind: str) -> Iterator[BinaryIO]:
    """A regular file, open for a library that decodes it; its errors are RequestErrors (`damage_is_refused`)."""
    with _regular_file(path, kind) as file, damage_is_refused(kind, path):
        yield file


def _regular_file(path: Path, kind: str) -> BinaryIO:
    """A regular file, or a link to one, opened for reading. Nothing else is even opened: a device may act on it."""
    try:
        _check_regular(os.stat(path), kind, path)
        # since the check it may have become a pipe, and opening that would wait for a writer
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except OSError as error:
        raise unreadable(kind, path, error) from error
    try:
        _check_regular(os.fstat(file.fileno()), kind, path)
        if os.pread(file.fileno(), len(_POINTER), 0) == _POINTER:
            raise RequestError(f"cannot read {kind} {path}: it is a git-lfs pointer; run `git lfs pull` in its folder")
    except BaseException:
        file.close()
        raise
    return cast("BinaryIO", file)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(found: os.stat_result, kind: str, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise RequestError(f"cannot read {kind} {path}: it is {what}, wanted a file")


@contextmanager
def damage_is_refused(kind: str, name: StrPath | None = None) -> Iterator[None]:
    """Around a library that decodes: whatever it raises on a damaged file comes out as a RequestError.

    Pillow and PyAV do not document their errors, and damaged files do raise every kind (UnicodeDecodeError,
    TypeError, struct.error, OverflowError, MemoryError, …).
    """
    try:
        yield
    except KinemaError:
        raise
    except Exception as error:
        raise unreadable(kind, name, error) from error


def unreadable(kind: str, name: StrPath | None, error: Exception) -> RequestError:
    """One line: what could not be read, and why."""
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    what = kind if name is None else f"{kind} {os.fsdecode(name)}"
    return RequestError(f"cannot read {what}: {' '.join(reason.split())}")
