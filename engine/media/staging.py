"""Never leaves a half-written result: it grows under a temporary name and is renamed when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from fractions import Fraction
from pathlib import Path

from kinema.errors import OutputError
from kinema.media.exchange import replace_folder, restore_earlier
from kinema.media.formats import FOLDER, Destination, check_fits, parse_destination
from kinema.media.libraries import needed
from kinema.media.temporary import lock, remove_abandoned, temporary_name

_FRAME = re.compile(r"frame_\d{5,}\.png")
_ADVICE = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "this place limits the size of files; write elsewhere",
    errno.EACCES: "write elsewhere or change the folder's permissions",
    errno.EROFS: "write elsewhere",
}


def check_writable(
    path: str | os.PathLike[str],
    *,
    fps: float | Fraction | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Destination:
    """Raise OutputError now if a video of this kind cannot be written to `path` later.

    Meant for the moment before minutes are spent on computing it. It looks at the suffix, at what is there
    already and at what the format can hold (whatever of `fps`, `num_frames`, `height`, `width` is given), and
    writes and removes a small temporary file beside the destination, since permissions alone do not tell of
    read-only or full disks. An existing file will be replaced; an existing folder only if it holds nothing
    but the frames of an earlier video.
    """
    destination = parse_destination(path)
    check_fits(destination, fps=fps, num_frames=num_frames, height=height, width=width)
    try:
        _check_parent(destination)
        _check_present(destination)
        _probe(destination)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(destination, error) from error
    check_library(destination)
    return destination


def check_library(destination: Destination) -> None:
    """UnsupportedError if the library that writes this format is not installed."""
    use, module = f"writing {destination.shown}", destination.format.library
    if module == "av":
        with needed(module, use):
            from kinema.media.mp4 import check_encoder
        check_encoder()
    elif module == "PIL":
        with needed(module, use):
            import kinema.media.pictures  # noqa: F401


def cannot_write(destination: Destination, error: Exception) -> OutputError:
    """One line for the user: what, why, and what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    advice = f"; {_ADVICE[number]}" if number in _ADVICE else ""
    return OutputError(f"cannot write {destination.shown}: {' '.join(reason.split())}{advice}")


def _check_parent(destination: Destination) -> None:
    parent = destination.path.parent
    if parent.is_dir():
        return
    there = next(p for p in parent.parents if p.is_dir())
    broken = there / parent.relative_to(there).parts[0]
    if broken.exists():
        raise OutputError(f"cannot write {destination.shown}: {broken} is not a folder")
    raise OutputError(f"cannot write {destination.shown}: folder {parent} does not exist; create it first")


def _check_present(destination: Destination) -> None:
    cannot, place = f"cannot write {destination.shown}", destination.path
    try:
        mode = os.lstat(place).st_mode
    except FileNotFoundError:
        return
    if destination.format is FOLDER:
        if not stat.S_ISDIR(mode):
            raise OutputError(
                f"{cannot}: it is a file, and a name without suffix means a folder of PNG files; "
                "add a suffix such as .mp4, or choose another name"
            )
        foreign = sorted(name for name in os.listdir(place) if not _FRAME.fullmatch(name))
        if foreign:
            raise OutputError(
                f"{cannot}: the folder holds other files ({foreign[0]}{', …' if len(foreign) > 1 else ''}); "
                "give a new or empty folder, or a file name such as out.mp4 in it"
            )
    elif stat.S_ISDIR(mode):
        raise OutputError(
            f"{cannot}: it is a folder; give a file name inside it, or end the path with '/' for PNG files"
        )
    elif not stat.S_ISREG(mode):
        raise OutputError(f"{cannot}: it is not a regular file; give another name")
    elif not os.access(place, os.W_OK):
        raise OutputError(f"{cannot}: the file there is write-protected; remove it or give another name")


def _probe(destination: Destination) -> None:
    probe = temporary_name(destination.path.parent)
    try:
        with open(probe, "xb") as file:
            file.write(bytes(4096))
    finally:
        probe.unlink(missing_ok=True)


class Staging:
    """A temporary file (or folder, for PNG frames) beside the destination. Errors are plain OSError."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.place = temporary_name(destination.path.parent)
        self._lock: int | None = None
        self._mode = 0

    def create(self) -> None:
        """Create it, empty, and remove what killed runs left here. It is private if what it will replace may be."""
        target = self.destination.path
        remove_abandoned(target.parent)
        if self.destination.format is FOLDER:
            restore_earlier(target)
            self.place.mkdir()
        else:
            self.place.open("xb").close()
        self._lock = lock(self.place)
        self._mode = stat.S_IMODE(os.stat(self.place).st_mode)  # as the umask wants it
        if os.path.lexists(target):
            _set_mode(self.place, 0o700 if self.destination.format is FOLDER else 0o600)

    def settle(self) -> None:
        """Have the contents on the disk: some file systems report a full disk only now."""
        if self.destination.format is not FOLDER:
            _sync(self.place)

    def publish(self) -> None:
        """Rename it to the destination, and replace what is there, whose mode it takes over."""
        target = self.destination.path
        _check_present(self.destination)
        replaces = os.path.lexists(target)
        _set_mode(self.place, stat.S_IMODE(os.stat(target).st_mode) if replaces else self._mode)
        if self.destination.format is not FOLDER:
            os.replace(self.place, target)
        elif replaces:
            replace_folder(self.place, target)
        else:
            os.rename(self.place, target)
        self._unlock()

    def discard(self) -> None:
        """Remove it, if it is there. Never raises: this runs while another error is on its way."""
        if self.destination.format is FOLDER:
            shutil.rmtree(self.place, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self.place.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _set_mode(place: Path, mode: int) -> None:
    with contextlib.suppress(OSError):  # not every file system has modes
        os.chmod(place, mode)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
