"""The file of a session as Markdown: a table for every question, headed by what it was asked on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kinema.bench.cells import row
from kinema.bench.gpu_session.results import Line
from kinema.bench.gpu_session.table import cells, nothing

LIBRARIES = ("torch", "triton", "CUDA", "cuDNN")


def section(lines: Sequence[Line]) -> str:
    """Of a file's lines: every question by the last run that answered it, or that tried to."""
    runs: list[list[Line]] = []
    for line in lines:
        if line["kind"] == "run":
            runs.append([])
        runs[-1].append(line)
    chosen: dict[str, int] = {}
    for number, run in enumerate(runs):
        for end in _ends(run):
            if end["status"] == "done" or not _done(runs, chosen, end["question"]):
                chosen[end["question"]] = number
    parts = []
    for number, run in enumerate(runs):
        names = [end["question"] for end in _ends(run) if chosen[end["question"]] == number]
        if names:
            parts += [_head(run[0]), *("\n".join(_question(run, name)) for name in names)]
    return "\n\n".join(parts)


def rehearsed(lines: Sequence[Line]) -> bool:
    """Whether a CPU stood in for the GPU in any run."""
    return any(line["kind"] == "run" and line["dry"] for line in lines)


def _ends(run: Sequence[Line]) -> list[Line]:
    return [line for line in run if line["kind"] == "end"]


def _done(runs: Sequence[Sequence[Line]], chosen: dict[str, int], name: str) -> bool:
    return name in chosen and any(e["question"] == name and e["status"] == "done" for e in _ends(runs[chosen[name]]))


def _head(run: Line) -> str:
    libraries = ", ".join(f"{name} {run['libraries'].get(name, 'unknown')}" for name in LIBRARIES)
    commit = f"{run['commit'][:10]}{' with changes' if run['dirty'] else ''}" if run["commit"] else "no commit"
    chip = "**A rehearsal on a CPU: its times mean nothing.** " if run["dry"] else f"{run['chip']}, "
    driver = f"driver {run['driver']}, " if run["driver"] else ""
    return f"{chip}{driver}{libraries}; kinema {run['kinema']}, {commit}, {run['time'][:10]}."


def _question(run: Sequence[Line], name: str) -> Iterator[str]:
    (end,) = (line for line in _ends(run) if line["question"] == name)
    yield f"### {name.replace('_', ' ')}"
    yield ""
    yield f"Asked: {end['decides']}." + (f" Not answered in full: {end['reason']}." if end["reason"] else "")
    rows = [(line, _cells(line)) for line in run if line["kind"] == "result" and line["question"] == name]
    if not rows:
        return
    columns = list(dict.fromkeys(column for _, found in rows for column in found))
    yield ""
    yield row(["", *columns])
    yield row(["---", *["---:"] * len(columns)])
    for line, found in rows:
        yield row([line["case"], *(found.get(column, "") for column in columns)])


def _cells(line: dict[str, Any]) -> dict[str, str]:
    why = nothing(line)
    found = {"why not": why} if why is not None else cells(line["fields"])
    error = {"error": f"{line['error']['relative']:.1e}"} if "relative" in line.get("error", {}) else {}
    return {**found, **error}
