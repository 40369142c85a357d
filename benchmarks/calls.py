"""kinema bench calls: what an eager call of each native op costs the host, beside the same call without its kernel.

The calls are tiny, so that a kernel takes next to nothing. "Python" is the call with the library's functions replaced
by nothing: checks, reading tensors and filling the struct of arguments. It is the least that a call costs through any
binding that is handed the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kinema.cli.output import emit
from kinema.errors import RequestError

CALLS = 20  # of a sample
TIMED = "one eager call of an op on a few tokens, by one thread"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", help="only this op; may be given several times")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from kinema.bench.intervals import median_of, paired_ratio
    from kinema.bench.report import check_report, provenance, write_report
    from kinema.bench.rounds import interleaved, say_if_few
    from kinema.ops import plan_ops, target_for
    from kinema.ops.common.threads import using_threads

    if arguments.rounds < 1:
        raise RequestError(f"{arguments.rounds} rounds: wanted at least 1")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    plan = plan_ops(target_for("cpu"), "cpu")  # refuses where the native kernels are not built
    rows = []
    with torch.inference_mode(), using_threads(1):
        for op, call in tiny_calls(arguments.op).items():
            both = {"call": repeated(call), "Python": without_kernels(repeated(call))}
            found = interleaved(both, arguments.rounds, shortest=0)
            samples = {name: [seconds / CALLS for seconds in each] for name, each in found.items()}
            share = paired_ratio(samples["Python"], samples["call"])
            rows.append(
                {
                    "case": op,
                    "seconds": median_of(samples["call"]).as_dict(),
                    "python_seconds": median_of(samples["Python"]).as_dict(),
                    "python_share": share.as_dict(),
                }
            )
    report = {**provenance("calls", arguments.words, plan, timed=TIMED, backend="cpu"), "rows": rows}
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def tiny_calls(wanted: list[str] | None = None) -> dict[str, Callable[[], Any]]:
    """A native call of each op, on a few tokens of a few channels."""
    import importlib

    from kinema.bench.gpu_session.little_calls import TINY, little_calls
    from kinema.ops import target_for
    from kinema.ops.calls import Inputs

    target, known = target_for("cpu"), little_calls(TINY)
    unknown = set(wanted or ()) - set(known)
    if unknown:
        raise RequestError(f"no op {', '.join(sorted(unknown))}: wanted some of {', '.join(known)}")
    made: dict[str, Callable[[], Any]] = {}
    for op in wanted or [op for op in known if op != "quantize"]:  # which no precision of a CPU calls by itself
        made[op] = known[op](importlib.import_module(f"kinema.ops.{op}.cpu"), target, Inputs(target.device))
    return made


def repeated(call: Callable[[], Any]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS):
            call()

    return calls


def without_kernels(calls: Callable[[], Any]) -> Callable[[], Any]:
    """The same calls, in which every function of the library returns at once."""

    def called() -> Any:
        with _nothing_native():
            return calls()

    return called


@contextmanager
def _nothing_native() -> Iterator[None]:
    from kinema.ops.common import native

    call, ask = native.Cpu.call, native.Cpu.ask
    native.Cpu.call, native.Cpu.ask = _returns, _returns  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        native.Cpu.call, native.Cpu.ask = call, ask  # type: ignore[method-assign]


def _returns(*_: Any) -> int:
    return 0


def _table(report: dict[str, Any]) -> str:
    from kinema.bench.cells import duration, row

    lines = [report["timed"], "", row(("op", "call", "of it Python", "share")), "|---|---:|---:|---:|"]
    for found in report["rows"]:
        share = found["python_share"]["median"]
        lines.append(
            row(
                (
                    found["case"],
                    duration(found["seconds"]["median"]),
                    duration(found["python_seconds"]["median"]),
                    f"{100 * share:.0f} %",
                )
            )
        )
    return "\n".join(lines)
