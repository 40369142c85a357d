"""Programs of the CUDA toolkit: where they are, and what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = ("bin", "compute-sanitizer", "nsight-compute")  # of a toolkit, which is not always on the path


@dataclass(frozen=True)
class Said:
    """code: None if it was stopped at its limit."""

    code: int | None
    text: str


def found(name: str) -> str | None:
    """The path of a program: on PATH, else in $CUDA_HOME, else where toolkits install themselves."""
    roots = [Path(root) for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if root]
    places = [str(root / folder) for root in roots for folder in FOLDERS]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def run(command: Sequence[str], limit: float, more: Mapping[str, str] | None = None) -> Said:
    """Run it for at most `limit` seconds; returns what it writes to both streams. A Python finds this one's modules.

    more: additional environment variables.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(more or {})}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        text: Any = expired.stdout or b""
        return Said(None, text if isinstance(text, str) else text.decode(errors="replace"))
    return Said(done.returncode, done.stdout)
