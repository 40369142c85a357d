"""A benchmark's result: JSON that says what was measured, where and with which source, with every sample.

All verbs write the same schema: what `provenance` gives, what the verb adds, and `rows`, each with a `name` that is
the same in every run and, if it was timed, its `samples` in seconds and their summary (`timing`).
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import kinema
from kinema.bench.intervals import median_of
from kinema.checkpoints import save_json
from kinema.checkpoints.model_folder import SAMPLE, SAMPLE_FOLDER
from kinema.cli import doctor
from kinema.errors import OutputError, RequestError
from kinema.ops import Plan

Report = dict[str, Any]

SCHEMA = 1
# field: its type in every report; `rows` is there where something was timed
FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "benchmark": str,
    "timed": str,
    "command": str,
    "time": str,
    "kinema": str,
    "commit": (str, type(None)),
    "dirty": bool,
    "machine": dict,
    "libraries": dict,
    "threads": int,
    "target": dict,
    "ops": dict,
}


def provenance(
    benchmark: str, words: Sequence[str], plan: Plan, *, timed: str = "nothing", backend: str | None = None
) -> Report:
    """What every report begins with.

    words: the command line after `kinema`. timed: a description of what a sample spans. backend: the one asked for.
    """
    head = commit()
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "timed": timed,
        "command": shlex.join(["kinema", *words]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kinema": kinema.__version__,
        "commit": head.rstrip("+") if head is not None else None,
        "dirty": head is not None and head.endswith("+"),
        "machine": doctor.machine(),
        "libraries": doctor.libraries(),
        "threads": torch.get_num_threads(),
        "target": {**doctor.target(plan), **({"backend": backend} if backend is not None else {})},
        "ops": {choice.op: choice.backend for choice in plan.choices},
    }


def model_of(folder: Path) -> Report:
    """The model of a report: its path, or "sample", and a digest of its parts' configurations."""
    configs = {}
    for path in sorted(folder.glob("*/config.json")):
        read = json.loads(path.read_text(encoding="utf-8"))
        configs[path.parent.name] = {key: value for key, value in read.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()
    name = SAMPLE if folder == SAMPLE_FOLDER else str(folder)
    return {"model": name, "configuration": digest[:16]}


def commit() -> str | None:
    """The commit of the checkout that kinema runs from, with "+" after it if files differ; None outside a checkout."""
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


def spread(samples: Sequence[float]) -> dict[str, float | None]:
    """Median with its interval (None where the samples are too few), and range: a mean would hide the noise."""
    return {**median_of(samples).as_dict(), "min": min(samples), "max": max(samples)}


def timing(name: str, samples: Sequence[float]) -> Report:
    """A row of what was timed; `compare` finds it in another run by its name."""
    return {"name": name, "samples": list(samples), "seconds": spread(samples)}


def check_report(path: str) -> None:
    """Raise OutputError now, not after minutes of measuring, if a report cannot be written to `path`."""
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give a file name such as {target / 'bench.json'}")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {target.parent}: {error.strerror or error}") from error


def write_report(path: str, report: Report) -> None:
    """Write a report, atomically. Raises OutputError."""
    save_json(Path(path), report)


def read_report(path: str) -> Report:
    """A report that `write_report` wrote. Raises RequestError with what is wrong with it."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise RequestError(f"cannot read {path}: {reason}; wanted a report that kinema bench wrote") from error
    wrong = _wrong(report)
    if wrong is not None:
        raise RequestError(f"{path} is not a report of kinema bench: {wrong}")
    found: Report = report
    return found


def _wrong(report: Any) -> str | None:
    """Why `report` is not of the schema; None if it is."""
    if not isinstance(report, dict):
        return f"it holds a {type(report).__name__}, wanted an object"
    if report.get("schema") != SCHEMA:
        return f"its schema is {report.get('schema')}, wanted {SCHEMA}: measure again with this kinema"
    for field, kind in FIELDS.items():
        if not isinstance(report.get(field), kind):
            return f"its {field} is {report.get(field)!r}"
    names = set()
    for row in report.get("rows", []):
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str) or name in names:
            return f"a row's name is {name!r}: wanted another one in each row"
        names.add(name)
        samples = row.get("samples", [])
        if not all(isinstance(value, (int, float)) and value > 0 for value in samples):
            return f"the samples of {name!r} are not all positive numbers of seconds"
    return None
