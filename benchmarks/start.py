"""kinema bench start: where the time of `kinema generate` goes beside importing torch, in fresh processes."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.cli.load import MODEL_HELP, add_load_arguments, load_words, open_to_measure
from kinema.cli.output import emit
from kinema.errors import KinemaError, RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report

TIMED = "a process from its start to its end, by turns; the stages of `kinema generate` are its own figures"
PROMPT = "a red circle moving left"
TORCH, GENERATE = "import torch", "generate"
# a process of our own ends like this, so that what is compared is the beginning
IMPORT = "import os, torch; os._exit(0)"
START, EXIT = "start beyond import torch", "exit"
WANTED = {START: 0.25, EXIT: 0.05}  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="processes of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="denoising steps (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.report import check_report, model_of, provenance, timing, write_report
    from kinema.bench.rounds import interleaved, say_if_few
    from kinema.request.progress import steps_bar

    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            raise RequestError(f"--{name} {getattr(arguments, name)}: wanted at least 1")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    pipe = open_to_measure(arguments)
    seen: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch, steps_bar(arguments.rounds, unit="round") as advance:
        output = str(Path(scratch) / "clip.mp4")
        words = [
            "generate",
            PROMPT,
            "-m",
            str(pipe.folder.path),
            "-o",
            output,
            "--steps",
            str(arguments.steps),
            "--json",
        ]
        command = [sys.executable, "-m", "kinema", *words, *load_words(arguments)]
        calls = {
            TORCH: lambda: subprocess.run([sys.executable, "-c", IMPORT], check=True),
            GENERATE: lambda: seen.append(stages(command)),
        }
        samples = interleaved(calls, arguments.rounds, warmup=1, shortest=0, advance=advance)
    kept = seen[-arguments.rounds :]
    torchs = statistics.median(samples[TORCH])
    by_stage = {name: [each[name] for each in kept] for name in kept[0]}
    beyond = [max(seconds - torchs, 1e-9) for seconds in by_stage.pop("before its work")]
    rows = {**samples, START: beyond, **by_stage}
    report = {
        **provenance("start", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(pipe.folder.path),
        "rows": [timing(name, seconds) for name, seconds in rows.items()],
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def stages(command: list[str]) -> dict[str, float]:
    """Run `kinema generate … --json`; the seconds until its work begins, of each of its stages, and of its exit."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        text = process.stdout.readline()
        said = time.perf_counter()
        errors = process.stderr.read()
        process.wait()
        ended = time.perf_counter()
    try:
        figures = json.loads(text)
    except ValueError as error:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise KinemaError(f"{' '.join(command[:4])} … ended with code {process.returncode}: {last}") from error
    own: dict[str, float] = {name: max(seconds, 1e-9) for name, seconds in figures["seconds"].items()}
    # python's start and the imports before `generate` runs count as its start
    outside = said - started - figures["wall_seconds"]
    return {"before its work": outside + own.pop("start"), **own, EXIT: max(ended - said, 1e-9)}


def _table(report: Report) -> str:
    from kinema.bench.cells import duration

    lines = [f"{report['model']}, {report['threads']} threads, {len(report['rows'][0]['samples'])} rounds"]
    for row in report["rows"]:
        wanted = f"   wanted at most {WANTED[row['name']]:g} s" if row["name"] in WANTED else ""
        lines.append(f"  {row['name']:26} {duration(row['seconds']['median']):>10}{wanted}")
    return "\n".join(lines)
