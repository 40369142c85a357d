"""kinema bench neighbours: how long a generation takes while other programs keep the same cores busy.

Quiet rounds and busy ones take turns. A fair scheduler gives all busy threads the same share, so that two threads take
1.5 times as long beside one busy loop on two cores, and twice as long beside two of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.bench.model import add_size_arguments, open_pipeline
from kinema.cli.load import MODEL_HELP, add_load_arguments
from kinema.cli.output import emit
from kinema.errors import RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report

TIMED = "a whole generation without writing it, loaded and warm; busy: that many loops run meanwhile"
KINEMA, PEER = "kinema", "diffusers"
CORES = 2  # that all share; LIMITS are for so many
LIMITS = {1: 2.2, 2: 3.2}  # busy loops: how many times its quiet median a generation may take
TAIL = 2.0  # how many times its own median the slowest may take
# ends with its parent, also where that was killed
LOOP = """
import os
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    add_size_arguments(parser)
    parser.add_argument("--busy", type=int, default=max(LIMITS), metavar="N", help="loops, at most (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="of a generation (left out: the model's)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="of each number of loops (%(default)s)")
    parser.add_argument("--cores", type=int, default=CORES, metavar="N", help="that all share (%(default)s)")
    parser.add_argument("--alone", action="store_true", help=f"without {PEER}, which may take minutes a round")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if kinema is slower beside busy loops, or less even, than it may be."""
    from kinema.bench.model import request_of
    from kinema.bench.model_parts import sizes_for
    from kinema.bench.peers import missing, peer
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.request.progress import steps_bar

    for name, least in (("rounds", 1), ("busy", 1), ("cores", 1), ("steps", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise RequestError(f"--{name} {value}: wanted at least {least}")
    if arguments.json is not None:
        check_report(arguments.json)
    with _on_cores(arguments.cores):
        pipe = open_pipeline(arguments)
        if pipe.ops.device.type != "cpu":
            raise RequestError(f"neighbours are of the CPU's cores, and kinema would run on {pipe.ops.device}")
        sizes = sizes_for(pipe, arguments.tokens, arguments.text_tokens)
        request = request_of(pipe, sizes, arguments.steps or pipe.defaults.num_inference_steps)
        calls: dict[str, Callable[[], Any]] = {KINEMA: lambda: pipe(**request, progress=False)}
        absent = missing(peer(PEER), pipe.ops.device)
        if not arguments.alone and absent is None:
            dtype = pipe.ops.plan.target.precision.activations
            theirs = peer(PEER).generation(Path(pipe.folder.path), request, pipe.ops.device, dtype)
            assert theirs is not None
            calls[PEER] = theirs
        with steps_bar(arguments.rounds * (arguments.busy + 1), unit="round") as advance:
            rows = measure(calls, arguments.busy, arguments.rounds, advance)
        if not arguments.alone and absent is not None:
            rows.append({"name": PEER, "failed": absent})
        report = {
            **provenance("neighbours", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
            **model_of(pipe.folder.path),
            "cores": arguments.cores,
            "steps": request["num_inference_steps"],
            "rows": rows,
        }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return int(arguments.cores == CORES and any(exceeds(row) for row in rows if row["name"].startswith(KINEMA)))


def measure(
    calls: Mapping[str, Callable[[], Any]], most: int, rounds: int, advance: Callable[[], None] = lambda: None
) -> list[Report]:
    """A row for each call beside 0, 1, … `most` loops, with how many times the quiet median its median is."""
    from kinema.bench.intervals import unpaired_ratio
    from kinema.bench.report import timing
    from kinema.bench.rounds import interleaved

    samples: dict[tuple[str, int], list[float]] = {(name, count): [] for name in calls for count in range(most + 1)}
    for call in calls.values():
        for _ in range(2):  # loads, then records what a later one replays
            call()
    for _ in range(rounds):
        for count in range(most + 1):
            with busy(count):
                for name, seconds in interleaved(calls, 1, warmup=0, shortest=0).items():
                    samples[name, count] += seconds
            advance()
    return [
        {
            **timing(f"{name}, {count} busy", seconds),
            "busy": count,
            "times_quiet": unpaired_ratio(seconds, samples[name, 0]).as_dict(),
            "tail": max(seconds) / statistics.median(seconds),
        }
        for (name, count), seconds in samples.items()
    ]


def exceeds(row: Report) -> bool:
    """Whether a row is beyond what it may be."""
    return "busy" in row and (
        row["times_quiet"]["median"] > LIMITS.get(row["busy"], float("inf")) or row["tail"] > TAIL
    )


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many busy loops, each another program in a session of its own, run during this block."""
    with ExitStack() as stack:
        for _ in range(count):
            command = [sys.executable, "-I", "-S", "-c", LOOP]
            loop = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
            stack.callback(loop.kill)  # before its end is waited for
            assert loop.stdout is not None
            loop.stdout.readline()  # it has begun
        yield


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """This thread, those that it starts and its children run on `count` cores."""
    import torch

    if not hasattr(os, "sched_setaffinity"):
        raise RequestError("the system cannot bind a program to cores")
    mask, threads = os.sched_getaffinity(0), torch.get_num_threads()
    if len(mask) < count:
        raise RequestError(f"--cores {count}: there are {len(mask)} for this program")
    os.sched_setaffinity(0, sorted(mask)[:count])
    torch.set_num_threads(min(threads, count))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mask)
        torch.set_num_threads(threads)


def _table(report: Report) -> str:
    from kinema.bench.intervals import Estimate, said

    limits = ", ".join(f"{limit} times beside {count}" for count, limit in LIMITS.items())
    lines = [
        f"{report['model']}: {report['steps']} steps, {report['threads']} threads and the loops on {report['cores']} "
        f"cores; on {CORES}, kinema may take {limits}, its slowest {TAIL:.0f} times its median",
        f"  {'':20} {'median s':>9} {'slowest':>9} {'of median':>10}  of the quiet median",
    ]
    for row in report["rows"]:
        if "seconds" not in row:
            lines.append(f"  {row['name']:20} {row['failed']}")
            continue
        seconds, ratio = row["seconds"], row["times_quiet"]
        times = "" if not row["busy"] else f"{ratio['median']:.2f}, {said(Estimate(**ratio))}"
        lines.append(
            f"  {row['name']:20} {seconds['median']:9.3f} {seconds['max']:9.3f} {row['tail']:10.2f}  {times}".rstrip()
        )
    return "\n".join(lines)
