"""What is printed: the list of questions, and what a run found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median
from typing import Any

from kinema.bench.gpu_session.choice import Known, ordered
from kinema.bench.gpu_session.results import Line

WIDTH = 120


def listed(known: Known) -> str:
    """Every question in the order in which they are asked."""
    lines = []
    for name in ordered(known):
        question = known[name]
        if isinstance(question, str):
            lines.append(f"{name}: cannot be imported: {question}")
            continue
        needs = f"; needs {', '.join(question.needs)}" if question.needs else ""
        lines.append(
            f"{name}: value {question.value:g}, about {question.seconds:g} s, limit {question.limit:g} s, "
            f"serves {question.serves}{needs}"
        )
        lines += textwrap.wrap(question.decides, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def answered(lines: Sequence[Line], left: Sequence[str]) -> str:
    """A line for each result, below its question; and what was left for another run."""
    said = []
    for end in (line for line in lines if line["kind"] == "end"):
        why = f": {end['reason']}" if end["reason"] else ""
        said.append(f"\n{end['question']}: {end['status']}, {end['seconds']:.1f} s{why}")
        for line in lines:
            if line["kind"] == "result" and line["question"] == end["question"]:
                said.append(f"  {line['case']:48} {found(line)}")
    if left:
        said.append(f"\nleft for another run, which --missing asks: {', '.join(left)}")
    return "\n".join(said)


def found(line: Line) -> str:
    """One result in words."""
    if not line["fields"]:
        return str(line.get("skipped") or line.get("refused") or "")
    return ", ".join(f"{name} {value}" for name, value in map(cell, *zip(*line["fields"].items(), strict=True)))


def cell(name: str, value: Any) -> tuple[str, str]:
    """A field's name without its unit, and its value with it: of samples the median, of other lists how many."""
    unit = name.rsplit("_", 1)[-1]
    if isinstance(value, (list, dict)):
        if unit != "seconds" or isinstance(value, dict):
            return name, f"of {len(value)}"
        value = median(value)
    if unit == "seconds":
        return name.removesuffix("_seconds"), duration(value)
    if unit == "bytes" and isinstance(value, (int, float)):
        return name.removesuffix("_bytes"), f"{value / 2**20:.4g} MiB"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return name, str(value)
    return name, f"{value:.4g}"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
