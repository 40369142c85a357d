"""Reads what ncu prints as CSV: a kernel's counters, the advice of ncu's rules, or why there are none."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

HEADER = '"ID",'
NOT_PERMITTED = "ERR_NVGPUCTRPERM"


@dataclass
class Profiled:
    """One launch. metrics: {section: {name: (value, unit)}}; values are numbers where possible, else texts.

    advice: what ncu's rules found, with the speedup that they estimate in percent, where they do.
    """

    kernel: str
    grid: str
    block: str
    metrics: dict[str, dict[str, tuple[float | str, str]]] = field(default_factory=dict)
    advice: list[tuple[str, float | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """refused: why nothing was counted, in ncu's words; None where something was."""

    launches: tuple[Profiled, ...]
    refused: str | None

    @property
    def not_permitted(self) -> bool:
        return self.refused is not None and NOT_PERMITTED in self.refused


def parse(text: str) -> Profile:
    """`ncu --csv --page details`, with any text around it."""
    launches: dict[str, Profiled] = {}
    for row in _rows(text):
        launch = launches.setdefault(
            row["ID"], Profiled(row["Kernel Name"], row.get("Grid Size", ""), row.get("Block Size", ""))
        )
        if row.get("Metric Name"):
            section = launch.metrics.setdefault(row["Section Name"], {})
            section[row["Metric Name"]] = (_value(row["Metric Value"]), row["Metric Unit"])
        elif row.get("Rule Description"):
            speedup = _value(row.get("Estimated Speedup") or "")
            launch.advice.append((row["Rule Description"], speedup if isinstance(speedup, float) else None))
    if launches:
        return Profile(tuple(launches.values()), None)
    said = re.findall(r"^==(?:ERROR|WARNING)== (.*)$", text, re.M)
    return Profile((), " ".join(said) or " ".join(text.split())[-300:] or "it said nothing")


def _rows(text: str) -> Iterator[Mapping[str, str]]:
    """Rows of the table; quoted texts may span lines."""
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith(HEADER)), None)
    if first is None:
        return
    table = [line for line in lines[first:] if not line.startswith("==")]
    for row in csv.DictReader(table):
        if row.get("Kernel Name") and str(row["ID"]).isdigit():
            yield {key: value for key, value in row.items() if key is not None and value is not None}


def _value(text: str) -> float | str:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def as_fields(launch: Profiled, advice: int = 6) -> dict[str, Any]:
    """For a report: metrics as "name, unit", sections as ncu has them, the weightiest advice first."""
    ranked = sorted(launch.advice, key=lambda said: -(said[1] or 0.0))
    return {
        "kernel": launch.kernel,
        "grid": launch.grid,
        "block": launch.block,
        "metrics": {
            section: {f"{name}, {unit}" if unit else name: value for name, (value, unit) in metrics.items()}
            for section, metrics in launch.metrics.items()
        },
        "advice": [{"text": text[:400], "speedup_percent": speedup} for text, speedup in ranked[:advice]],
    }
