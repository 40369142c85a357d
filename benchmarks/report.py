"""A benchmark's result: JSON that says what was measured, where and of which source, and the spread of its rounds."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import kinema
from kinema.checkpoints import save_json
from kinema.commands import doctor
from kinema.errors import OutputError
from kinema.ops import Plan

Report = dict[str, Any]


def provenance(benchmark: str, words: Sequence[str], plan: Plan) -> Report:
    """What every report begins with. words: the command line after `kinema`."""
    return {
        "benchmark": benchmark,
        "command": shlex.join(["kinema", *words]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kinema": kinema.__version__,
        "commit": commit(),
        "machine": doctor.machine(),
        "libraries": doctor.libraries(),
        "target": doctor.target(plan),
        "ops": {choice.op: choice.backend for choice in plan.choices},
    }


def commit() -> str | None:
    """The commit of the checkout that kinema runs from, with "+" after it if files differ; None outside of one."""
    root = Path(kinema.__file__).resolve().parent.parent
    if not ((root / ".git").exists() and (root / "engine").is_dir()):
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of another user
        return None
    return head + ("+" if changes else "")


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range: machines are noisy, and a mean hides it."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def check_report(path: str) -> None:
    """Raise OutputError now if a report cannot be written to `path` after minutes of measuring."""
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give a file name such as {target / 'bench.json'}")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {target.parent}: {error.strerror or error}") from error


def write_report(path: str, report: Report) -> None:
    """Whole or not at all. Raises OutputError."""
    save_json(Path(path), report)
