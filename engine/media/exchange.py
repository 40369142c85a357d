"""Replacing a folder: in one step where the system can swap two names."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

# linux/fcntl.h, linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def replace_folder(new: Path, target: Path) -> None:
    """Give `new` the name of `target`, an existing folder beside it, and remove the old folder.

    Whenever the process is killed, one of the two has the name. Only where the system cannot swap them, neither has it
    between two renames, and the old one is kept under `earlier_name` until `restore_earlier` is called.
    """
    if exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
        return
    earlier = earlier_name(target)
    try:
        os.rename(target, earlier)
        os.rename(new, target)
    except BaseException:
        restore_earlier(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step. False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library of before 2018
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def earlier_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.kinema-earlier")


def restore_earlier(target: Path) -> None:
    """Undo a replacement that was cut short between its two renames, or finish one that was cut short after them."""
    earlier = earlier_name(target)
    if not os.path.lexists(earlier):
        return
    if os.path.lexists(target):
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        os.rename(earlier, target)
