"""What fails for reasons outside kinema, in one line: memory, libraries, files, warnings that were made errors."""

from __future__ import annotations

import errno

# what torch, its libraries and the loader say where the system gives no memory or thread
_EXHAUSTED = ("can't allocate memory", "out of memory", "Cannot allocate memory", "failed to map segment", "new thread")


def described(error: Exception) -> str | None:
    """The line for such an error; None for one that is kinema's own mistake, whose traceback is wanted."""
    text = str(error) or type(error).__name__
    if isinstance(error, Warning):
        return f"{text} (a {type(error).__name__}, which PYTHONWARNINGS or python -W makes an error)"
    if not isinstance(error, (MemoryError, OSError, RuntimeError, ImportError)):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(sign in text for sign in _EXHAUSTED):
        return f"the system gives this process no more memory or threads: free some, or raise its limits ({text})"
    if isinstance(error, ImportError):
        return f"a library does not load: {text}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or text}"
    return None
