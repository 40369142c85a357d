"""The checked-in table: what every production case compiles to. JSON is the truth, one line a build and a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import triton
from measure import Measure
from recorded import Recorded

from kinema.bench.gpus import GPUS, bound
from kinema.bench.op_counts import Count

FILE = Path(__file__).parent / "table.json"


@dataclass(frozen=True)
class Launched:
    """One launch of a row on one chip. build: the name of what it was compiled to. programs: the size of its grid."""

    build: str
    programs: int


@dataclass(frozen=True)
class Row:
    """One case in one precision. launches: by chip, or why the chip is refused or does not compile it."""

    count: Count
    launches: Mapping[str, list[Launched] | str]


@dataclass
class Table:
    """builds: by name, then by chip. What compiles to the same code is one build, named after its first row."""

    triton: str
    builds: dict[str, dict[str, Measure]] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)

    def measures(self, row: str, chip: str) -> list[Measure] | str:
        launches = self.rows[row].launches[chip]
        return launches if isinstance(launches, str) else [self.builds[one.build][chip] for one in launches]


def make(recorded: Iterable[Recorded], found: Mapping[str, Measure | str]) -> Table:
    table = Table(triton.__version__)
    names: dict[str, str] = {}
    for one in recorded:
        launches: dict[str, list[Launched] | str] = {}
        for chip, jobs in one.jobs.items():
            if isinstance(jobs, str):
                launches[chip] = jobs
                continue
            failed = [reason for job in jobs if isinstance(reason := found[job.key], str)]
            if failed:
                launches[chip] = f"does not compile: {failed[0].splitlines()[0]}"
                continue
            launches[chip] = []
            for number, job in enumerate(jobs):
                name = names.setdefault(job.key, one.name if len(jobs) == 1 else f"{one.name}, launch {number + 1}")
                measured = found[job.key]
                assert isinstance(measured, Measure)
                table.builds.setdefault(name, {})[chip] = measured
                launches[chip].append(Launched(name, prod(job.grid)))
        table.rows[one.name] = Row(one.count, launches)
    return table


def save(table: Table, file: Path = FILE) -> None:
    builds = {name: {chip: m.as_json() for chip, m in by.items()} for name, by in table.builds.items()}
    rows = {name: _row_json(row) for name, row in table.rows.items()}
    lines = [
        "{",
        f' "triton": {json.dumps(table.triton)},',
        ' "builds": {',
        ",\n".join(f"  {json.dumps(name)}: {_by_chip(by)}" for name, by in builds.items()),
        " },",
        ' "rows": {',
        ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()),
        " }",
        "}",
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(file: Path = FILE) -> Table:
    stored = json.loads(file.read_text(encoding="utf-8"))
    table = Table(stored["triton"])
    for name, by in stored["builds"].items():
        table.builds[name] = {chip: Measure.from_json(m) for chip, m in by.items()}
    for name, row in stored["rows"].items():
        launches = {
            chip: made if isinstance(made, str) else [Launched(*one) for one in made]
            for chip, made in row["launches"].items()
        }
        table.rows[name] = Row(Count(**row["count"]), launches)
    return table


def _by_chip(by: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"   {json.dumps(chip)}: {json.dumps(made)}" for chip, made in by.items()) + "}"


def _row_json(row: Row) -> dict[str, Any]:
    launches = {
        chip: made if isinstance(made, str) else [[one.build, one.programs] for one in made]
        for chip, made in row.launches.items()
    }
    bounds = {gpu.name: found for gpu in GPUS if (found := bound(gpu, row.count)) is not None}
    return {
        "count": vars(row.count),
        "bound_us": {name: round(found.microseconds, 2) for name, found in bounds.items()},
        "launches": launches,
    }
