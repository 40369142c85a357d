"""Every environment variable that kinema reads.

Kernels know nothing of the engine, so theirs are beside them: KINEMA_CPU_ISA (portable, avx2, avx512, avx512vnni or
avx512bf16: the instruction set of the native kernels) and KINEMA_CPU_LIBRARY (another build of them), in
kernels/common/native.py, and KINEMA_CACHE (the folder of what is kept of a machine; ~/.cache/kinema), in
kernels/common/cache_files.py.
"""

from __future__ import annotations

import os


def traceback() -> bool:
    """KINEMA_TRACEBACK=1: the command line shows the whole traceback of an error, not one line."""
    return os.environ.get("KINEMA_TRACEBACK", "") not in ("", "0")
