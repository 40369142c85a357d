"""kinema bench gpu-session: asks a GPU the questions that only a GPU can answer, the most valuable first."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.commands.output import emit
from kinema.errors import OutputError, RequestError

if TYPE_CHECKING:
    from kinema.bench.gpu_session.choice import Known
    from kinema.bench.gpu_session.results import Line
    from kinema.bench.gpu_session.worker import Ended, Send

BUDGET = 540.0
FOLDER = Path("build") / "gpu_session"
NO_GPU = "skipped: there is no GPU that torch sees on this machine (docs/gpu.md says how to rehearse without one)"
HEAD_LIMIT = 60.0
DRY_PATIENCE = 3  # times a question's limit: a rehearsal shares its processor with others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="say what each question decides, and ask none")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="ask these questions")
    parser.add_argument("--missing", action="store_true", help="ask what the file has no answer to")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="for the whole run (%(default)g)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="run the questions' own code on a CPU, Triton interpreted"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"where results are appended ({FOLDER}/gpu.jsonl; of a dry run {FOLDER}/dry.jsonl, which begins anew)",
    )
    parser.add_argument(
        "--triton-cache", type=Path, metavar="FOLDER", help="kernels that were built ahead (docs/gpu.md)"
    )
    parser.add_argument("--commit", metavar="HEX", help="what this is a copy of, where git does not know")


def run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        if not (arguments.dry_run or arguments.list) and shutil.which("nvidia-smi") is None:
            emit(NO_GPU)
            return 0
        raise RequestError(f"{sys.executable} has no torch: make gpu-session PYTHON=... names one that has")
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
    from kinema.bench.gpu_session import table
    from kinema.bench.gpu_session.choice import chosen, known
    from kinema.bench.gpu_session.results import ANSWERED, asked, read

    if not arguments.budget > 0:
        raise RequestError(f"a budget of {arguments.budget:g} s: wanted more than 0")
    started = time.perf_counter()
    questions = known()
    if arguments.list:
        emit(table.listed(questions))
        return 0
    path = arguments.json or FOLDER / ("dry.jsonl" if arguments.dry_run else "gpu.jsonl")
    before = asked(read(path)) if path.exists() and not arguments.dry_run else {}
    answered = [name for name, status in before.items() if status in ANSWERED]
    names = chosen(questions, arguments.only, arguments.missing, answered)
    head = _head(arguments, path)
    if head is None:
        emit(NO_GPU)
        return 0
    lines = _ask(arguments, questions, names, head, path, started)
    emit(table.answered(lines, [name for name in names if name not in asked(lines)]))
    emit(f"\n{path}: {sum(line['kind'] == 'result' for line in lines)} results")
    return 0


def _head(arguments: argparse.Namespace, path: Path) -> Line | None:
    """In a process of its own: this one may not touch CUDA before it forks."""
    from kinema.bench.gpu_session import machine
    from kinema.bench.gpu_session.worker import run_apart

    folder = path.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    found: list[Line | None] = []

    def work(send: Send) -> None:
        line = machine.head(arguments.words, arguments.commit, dry=arguments.dry_run)
        send(line if line is not None else {})

    ended = run_apart(work, HEAD_LIMIT, lambda line: found.append(line or None), folder / "machine.log")
    if not found:
        raise RequestError(f"torch cannot say what the GPU is: {ended.reason}; {folder / 'machine.log'} has more")
    return found[0]


def _ask(
    arguments: argparse.Namespace, questions: Known, names: list[str], head: Line, path: Path, started: float
) -> list[Line]:
    """Every question that fits the budget; their lines, which are in the file as soon as they are here."""
    from kinema.bench.gpu_session.choice import lacks
    from kinema.bench.gpu_session.results import append
    from kinema.bench.gpu_session.worker import Ended

    lines: list[Line] = []

    def keep(line: Line) -> None:
        append(path, line)
        lines.append(line)

    if arguments.dry_run:
        path.unlink(missing_ok=True)
    else:
        os.environ["TRITON_CACHE_DIR"] = str((FOLDER / "triton").resolve())
    if arguments.triton_cache is not None:
        if not arguments.triton_cache.is_dir():
            raise RequestError(f"--triton-cache {arguments.triton_cache}: there is no such folder")
        os.environ["KINEMA_TRITON_AHEAD"] = str(arguments.triton_cache.resolve())
    keep(head)
    for name in names:
        question = questions[name]
        left = arguments.budget - (time.perf_counter() - started)
        if isinstance(question, str):
            keep(_end(name, "", Ended("failed", question, 0.0)))
        elif (reason := lacks(question.needs)) is not None:
            keep(_end(name, question.decides, Ended("skipped", reason, 0.0)))
        elif question.seconds <= left or arguments.dry_run:
            emit(f"{name}: {question.decides}")
            limit = DRY_PATIENCE * question.limit if arguments.dry_run else min(question.limit, left)
            ended = _one(arguments.dry_run, name, questions, limit, keep, path, started)
            keep(_end(name, question.decides, ended))
            emit(f"  {ended.status} in {ended.seconds:.1f} s" + (f": {ended.reason}" if ended.reason else ""))
    return lines


def _one(dry: bool, name: str, questions: Known, limit: float, keep: Send, path: Path, started: float) -> Ended:
    from kinema.bench.gpu_session.question import Question
    from kinema.bench.gpu_session.session import DrySession, GpuSession
    from kinema.bench.gpu_session.worker import run_apart

    question = questions[name]
    assert isinstance(question, Question)
    folder = path.with_suffix("") / name
    folder.mkdir(parents=True, exist_ok=True)

    def work(send: Send) -> None:
        session = (DrySession if dry else GpuSession)(name, folder, send, started)
        question.ask(session)

    return run_apart(work, limit, keep, folder / "said.log")


def _end(name: str, decides: str, ended: Ended) -> Line:
    return {"kind": "end", "question": name, "decides": decides, **vars(ended)}
