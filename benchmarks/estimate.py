"""kinema bench estimate: the seconds that `kinema generate` foresees beside those that it takes.

Each clip is a process of its own. They share a fresh cache folder, so that the first is a guess and the others go by
the runs before them; clips of other sizes and steps come between.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinema.bench.memory import MIDDLE
from kinema.bench.report import Report
from kinema.cli.output import emit
from kinema.errors import KinemaError, RequestError

WITHIN = 1.5
TIMED = "processes of `kinema generate`, without their start, beside what they foresaw"
CLIPS = {
    "sample": (
        *("", "", "--steps 40", "--num-frames 49", "--num-frames 33", "--height 128 --width 128", ""),
        *("--num-frames 81 --steps 10", "--num-videos 2", ""),
    ),
    "middle": ("--steps 2", "--steps 2", "--steps 6", "--steps 2 --num-frames 1", "--steps 3 --num-frames 13"),
}
OF_MIDDLE = "--height 256 --width 256 --num-frames 25"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=tuple(CLIPS), action="append", help="only this one (left out: all)")
    parser.add_argument("--clips", type=int, metavar="N", help="only the first N of each")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if an estimate that rests on a run of its model is off by more than WITHIN."""
    from kinema.bench.random_model import write_random_model
    from kinema.bench.report import check_report, provenance, write_report
    from kinema.ops import plan_ops, target_for
    from kinema.request.progress import steps_bar

    if arguments.clips is not None and arguments.clips < 1:
        raise RequestError(f"--clips {arguments.clips}: wanted at least 1")
    if arguments.json is not None:
        check_report(arguments.json)
    wanted = [
        (model, clip)
        for model in arguments.model or CLIPS
        for clip in CLIPS[model][: arguments.clips or len(CLIPS[model])]
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder, steps_bar(len(wanted), unit="clip") as advance:
        middle = Path(folder) / "middle"
        if any(model == "middle" for model, _ in wanted):
            write_random_model(middle, MIDDLE)
        for model, clip in wanted:
            path, size = ("sample", "") if model == "sample" else (str(middle), OF_MIDDLE)
            rows.append(_measured(model, path, f"{size} {clip}".split(), Path(folder)))
            advance()
    head = provenance("estimate", arguments.words, plan_ops(target_for("cpu"), "auto"), timed=TIMED, backend="auto")
    report: Report = {**head, "rows": rows, "outside": sum(not row["fits"] for row in rows)}
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(rows))
    return 1 if report["outside"] else 0


def _measured(model: str, path: str, words: list[str], folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "kinema", "generate", "a red circle moving left", "--model", path, "--json"]
    environment: Mapping[str, str] = {**os.environ, "KINEMA_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*command, "--seed", "0", "--device", "cpu", "--output", str(folder / "out.npy"), *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise KinemaError(f"{model} {' '.join(words)}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    taken = found["wall_seconds"] - found["seconds"]["start"]
    ratio = found["estimated_seconds"] / taken
    row = {"name": f"{model} {' '.join(words)}".strip(), "foreseen": found["estimated_seconds"], "taken": taken}
    fits = found["earlier_runs"] == 0 or 1 / WITHIN <= ratio <= WITHIN
    return {**row, "ratio": ratio, "earlier_runs": found["earlier_runs"], "fits": fits}


def _table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:{width}}  foreseen {row['foreseen']:6.2f} s  taken {row['taken']:6.2f} s  {row['ratio']:5.2f}  "
        + ("a guess" if row["earlier_runs"] == 0 else "" if row["fits"] else "outside")
        for row in rows
    ]
    judged = [row for row in rows if row["earlier_runs"]]
    inside = sum(row["fits"] for row in judged)
    lines = [line.rstrip() for line in lines]
    return "\n".join([*lines, f"{inside} of {len(judged)} within a factor of {WITHIN} of what they took"])
