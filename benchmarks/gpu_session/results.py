"""The file of a session: JSON lines, each written at once. What a line holds is written down here and nowhere else.

A run begins with a "run" line that says what it ran on; "result" lines follow, and an "end" line for every question
that was asked. The next run is appended to the same file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kinema.errors import OutputError, RequestError

Line = dict[str, Any]

SCHEMA = 1
STATUSES = ("done", "failed", "limit", "crash", "skipped")
_TEXT = (str, type(None))
_NUMBER = (int, float)

# kind: {field: its type}
FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "run": {
        "schema": int, "time": str, "command": str, "kinema": str, "commit": _TEXT, "dirty": bool, "dry": bool,
        "chip": str, "capability": _TEXT, "driver": _TEXT, "clocks": dict, "machine": dict, "libraries": dict,
    },
    # at: seconds after the start of the run; fields: what was found. Or the reason why there is nothing: skipped
    # (cannot be asked here) or refused (the result is wrong). error: the distance from the truth, where it was checked
    "result": {"question": str, "case": str, "at": _NUMBER, "fields": dict, "clocks": dict},
    "end": {"question": str, "decides": str, "status": str, "reason": _TEXT, "seconds": _NUMBER},
}  # fmt: skip
OPTIONAL = {"result": {"skipped": str, "refused": str, "error": dict}}


def mend(path: Path, *, anew: bool) -> None:
    """Truncate the file to whole lines, so that others can be appended. anew: remove it. Raises OutputError."""
    try:
        if anew or not path.exists():
            path.unlink(missing_ok=True)
            return
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def append(path: Path, line: Line) -> None:
    """Append a line and close the file. Raises OutputError, and ValueError for an invalid line."""
    wrong = wrong_line(line)
    if wrong is not None:
        raise ValueError(f"not a line of a session: {wrong}")
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> list[Line]:
    """The lines of a file. A last one that was cut short is dropped. Raises RequestError with what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    lines: list[Line] = []
    *whole, _ = text.split("\n")
    for number, word in enumerate(whole, 1):
        try:
            lines.append(json.loads(word))
        except ValueError as error:
            raise RequestError(f"{path}, line {number}: it is not JSON; wanted what make gpu-session wrote") from error
    wrong = wrong_session(lines)
    if wrong is not None:
        raise RequestError(f"{path} is not the file of a session: {wrong}")
    return lines


def wrong_session(lines: Iterable[Any]) -> str | None:
    """Why these lines, in this order, are not a session's; None if they are."""
    cases: set[tuple[str, str]] | None = None
    for number, line in enumerate(lines, 1):
        wrong = wrong_line(line)
        if wrong is None and line["kind"] == "run":
            cases = set()
            continue
        if wrong is None and cases is None:
            wrong = f"a {line['kind']} before the first run"
        if wrong is None and line["kind"] == "result":
            assert cases is not None
            key = (line["question"], line["case"])
            wrong = f"{key[1]!r} of {key[0]} twice in a run" if key in cases else None
            cases.add(key)
        if wrong is not None:
            return f"line {number}: {wrong}"
    return None if cases is not None else "it holds no run"


def wrong_line(line: Any) -> str | None:
    """Why `line` is not of the schema; None if it is."""
    kind = line.get("kind") if isinstance(line, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        return f"its kind is {kind!r}, wanted one of {', '.join(FIELDS)}"
    wanted, optional = FIELDS[kind], OPTIONAL.get(kind, {})
    for field, types in wanted.items():
        if not isinstance(line.get(field), types):
            return f"the {field} of a {kind} is {line.get(field)!r}"
    for field in line.keys() - wanted.keys() - {"kind"}:
        if field not in optional or not isinstance(line[field], optional[field]):
            return f"a {kind} has {field} {line[field]!r}"
    if kind == "run" and line["schema"] != SCHEMA:
        return f"its schema is {line['schema']}, wanted {SCHEMA}"
    if kind == "end" and (line["status"] not in STATUSES or (line["status"] == "done") != (line["reason"] is None)):
        return f"{line['question']} ended as {line['status']!r} because of {line['reason']!r}"
    if kind == "result":
        said = [field for field in ("skipped", "refused") if field in line]
        if said and (line["fields"] or len(said) > 1):
            return f"{line['case']!r}: wanted what was found, or one reason why there is nothing"
        return wrong_fields(line["fields"])
    return None


def wrong_fields(fields: Mapping[str, Any]) -> str | None:
    """Why a question may not report these; None if it may. Lists whose name ends in "seconds" are samples of time."""
    for name, value in fields.items():
        if not isinstance(name, str) or not _plain(value):
            return f"{name} is {str(value)[:80]}: wanted numbers that are finite, texts, and lists and tables of them"
        timed = value if isinstance(value, list) else [value]
        if name.split("_")[-1] == "seconds" and not (timed and all(_number(v) and v > 0 for v in timed)):
            return f"{name} is {str(value)[:80]}: wanted positive numbers of seconds"
    return None


def asked(lines: Iterable[Line]) -> set[str]:
    """The questions that have ended, in whatever way."""
    return {line["question"] for line in lines if line["kind"] == "end"}


def answered(lines: Iterable[Line]) -> set[str]:
    """Those that were completed, and need not be asked again."""
    return {line["question"] for line in lines if line["kind"] == "end" and line["status"] == "done"}


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(v) for key, v in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str) or (isinstance(value, (int, float)) and math.isfinite(value))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
