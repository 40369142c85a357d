"""kinema bench gpu-session: asks a GPU what only a GPU can answer, the most valuable questions first."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.cli.output import emit
from kinema.errors import OutputError, RequestError

if TYPE_CHECKING:
    from kinema.bench.gpu_session.results import Line
    from kinema.bench.gpu_session.worker import Send

BUDGET = 540.0
FOLDER = Path("build") / "gpu_session"
NO_GPU = "skipped: there is no GPU that torch sees on this machine (docs/gpu.md says how to rehearse without one)"
HEAD_LIMIT = 60.0  # seconds for torch to say what the GPU is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="say what each question decides, and ask none")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="ask these questions")
    parser.add_argument("--missing", action="store_true", help="ask what the file has no answer to")
    budget = f"for the whole run (on a GPU {BUDGET:g}; a rehearsal has no limit)"
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=budget)
    parser.add_argument("--dry-run", action="store_true", help="rehearse the questions on a CPU, Triton interpreted")
    file = f"append the results to this file ({FOLDER}/gpu.jsonl; a rehearsal begins {FOLDER}/dry.jsonl anew)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=file)
    parser.add_argument("--triton-cache", type=Path, metavar="FOLDER", help="kernels built ahead of time")
    parser.add_argument("--commit", metavar="HEX", help="the commit of a copy without git")


def run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        return _without_torch(arguments)
    _environment(arguments)  # before a kernel is imported
    from kinema.bench.gpu_session import results, table
    from kinema.bench.gpu_session.choice import chosen, known
    from kinema.bench.gpu_session.runner import Runner

    started = time.perf_counter()
    budget = arguments.budget if arguments.budget is not None else math.inf if arguments.dry_run else BUDGET
    if not budget > 0:
        raise RequestError(f"a budget of {budget:g} s: wanted more than 0")
    questions = known()
    if arguments.list:
        emit(table.listed(questions))
        return 0
    path = arguments.json or FOLDER / ("dry.jsonl" if arguments.dry_run else "gpu.jsonl")
    before = results.read(path) if path.exists() else []
    if any(line["kind"] == "run" and line["dry"] != arguments.dry_run for line in before):
        raise RequestError(f"{path} is of {'a GPU' if arguments.dry_run else 'a rehearsal'}: --json names another file")
    names = chosen(questions, arguments.only, arguments.missing, results.answered(before))
    runner = Runner(path, arguments.dry_run, budget, started, emit)
    head = _head(arguments, runner.folder)
    if head is None:
        emit(NO_GPU)
        return 0
    results.mend(path, anew=arguments.dry_run and not arguments.missing)
    lines = runner.ask(questions, names, head)
    emit(table.answered(lines, [name for name in names if name not in results.asked(lines)]))
    emit(f"\n{path}: {sum(line['kind'] == 'result' for line in lines)} results")
    return 0


def _without_torch(arguments: argparse.Namespace) -> int:
    if arguments.dry_run or arguments.list or shutil.which("nvidia-smi") is not None:
        raise RequestError(f"{sys.executable} has no torch: make gpu-session PYTHON=... names one that has")
    emit(NO_GPU)
    return 0


def _environment(arguments: argparse.Namespace) -> None:
    """Environment of the questions' processes: Triton interpreted, or the Triton cache that they share."""
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ["TRITON_CACHE_DIR"] = str((FOLDER / "triton").resolve())
    if arguments.triton_cache is not None:
        if not arguments.triton_cache.is_dir():
            raise RequestError(f"--triton-cache {arguments.triton_cache}: there is no such folder")
        os.environ["KINEMA_TRITON_AHEAD"] = str(arguments.triton_cache.resolve())


def _head(arguments: argparse.Namespace, folder: Path) -> Line | None:
    """What this runs on, None without a GPU; from another process, as this one must not touch CUDA before it forks."""
    from kinema.bench.gpu_session import machine
    from kinema.bench.gpu_session.worker import run_apart

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    found: list[Line] = []

    def work(send: Send) -> None:
        send(machine.head(arguments.words, arguments.commit, dry=arguments.dry_run) or {})

    log = folder / "machine.log"
    ended = run_apart(work, HEAD_LIMIT, found.append, log)
    if not found:
        raise RequestError(f"torch cannot say what the GPU is: {ended.reason}; {log} has more")
    return found[0] or None
