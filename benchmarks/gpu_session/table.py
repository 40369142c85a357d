"""What is printed: the list of questions, and what a run found."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from kinema.bench.cells import duration
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
                found = nothing(line) or ", ".join(f"{name} {cell}" for name, cell in cells(line["fields"]).items())
                said.append(f"  {line['case']:56} {found}")
    if left:
        said.append(f"\nleft for another run, which --missing asks: {', '.join(left)}")
    return "\n".join(said)


def nothing(line: Line) -> str | None:
    """Why a result is none; None if it is one."""
    return line.get("skipped") or line.get("refused")


def cells(fields: Mapping[str, Any]) -> dict[str, str]:
    """{column: cell}. Names that end in seconds or bytes are shown with their units; work is shown as its rate."""
    shown = {}
    taken = median(fields["seconds"]) if isinstance(fields.get("seconds"), list) else fields.get("seconds")
    for name, value in fields.items():
        unit = name.rsplit("_", 1)[-1]
        column = (
            "time" if name == "seconds" else name.removesuffix(f"_{unit}") if unit in ("seconds", "bytes") else name
        )
        column = column.replace("_", " ")
        if unit == "seconds":
            shown[column] = _samples(value)
        elif name == "flops" and taken:
            shown["TFLOP/s"] = f"{value / taken / 1e12:.4g}"
        elif name == "bytes" and taken:
            shown["TB/s"] = f"{value / taken / 1e12:.3g}"
        elif unit == "bytes":
            shown[column] = f"{value / 2**20:.4g} MiB"
        elif isinstance(value, (list, dict)):
            shown[column] = f"{len(value)} values"
        elif isinstance(value, float):
            shown[column] = f"{value:.4g}"
        else:
            shown[column] = {"True": "yes", "False": "no", "None": ""}.get(str(value), str(value))
    return shown


def _samples(value: float | list[float]) -> str:
    """The median and the range of the samples."""
    samples = value if isinstance(value, list) else [value]
    spread = f" ({duration(min(samples))} to {duration(max(samples))})" if len(samples) > 1 else ""
    return f"{duration(median(samples))}{spread}"
