"""kinema bench ops: each op at production sizes, beside the least that it can take on this GPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kinema.commands.load import add_target_arguments
from kinema.commands.output import emit
from kinema.commands.parser import text
from kinema.errors import RequestError

if TYPE_CHECKING:
    import torch

    from kinema.bench.op_cases import Case
    from kinema.bench.report import Report
    from kinema.ops import Plan

WARMUP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", help="only this op; may be given several times")
    parser.add_argument(
        "--case", type=text, metavar="TEXT", help="only cases with this in their name ('sample' on a CPU, all on a GPU)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.op_cases import all_cases
    from kinema.bench.report import check_report, provenance, write_report
    from kinema.ops import plan_ops, target_for
    from kinema.progress import steps_bar

    if arguments.rounds < 1:
        raise RequestError(f"{arguments.rounds} rounds: wanted at least 1")
    if arguments.json is not None:
        check_report(arguments.json)
    plan = plan_ops(target_for(arguments.device, arguments.precision), arguments.backend)
    wanted = arguments.case or ("sample" if plan.target.device.type == "cpu" else "")
    cases = [
        case
        for case in all_cases()
        if wanted in case.name
        and case.op in (arguments.op or [case.op])
        and plan.target.precision.name in case.precisions
    ]
    if not cases:
        raise RequestError(
            f"no case of {', '.join(arguments.op or ['any op'])} in {plan.target.precision.name} has "
            f"{wanted!r} in its name; the cases are in benchmarks/op_cases.py"
        )
    rows = []
    with steps_bar(len(cases), unit="case") as advance:
        for case in cases:
            rows.append(measure(case, plan, arguments.rounds))
            advance()
    report = {**provenance("ops", arguments.words, plan), "rows": rows}
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def measure(case: Case, plan: Plan, rounds: int) -> Report:
    """Seconds of a call over some rounds, and the work that it does; with why it could not be made, if it could not."""
    import torch

    from kinema.bench.gpus import bound, of_device
    from kinema.bench.op_calls import Inputs
    from kinema.bench.op_counts import count
    from kinema.bench.report import spread

    device = plan.target.device
    row: Report = {"op": case.op, "case": case.name}
    try:
        call = case.prepare(_functions(case.op, plan), plan.target, Inputs(device))
        with torch.inference_mode():
            work = count(case.op, call, call())
            seconds = _seconds(call, device, rounds)
    except torch.OutOfMemoryError:
        return {**row, "failed": "out of memory"}
    row |= {"seconds": spread(seconds), "flops": work.flops, "bytes": work.bytes}
    gpu = of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    least = bound(gpu, work) if gpu is not None else None
    return row | ({"bound_us": least.microseconds, "bound_by": least.by} if least is not None else {})


def _functions(op: str, plan: Plan) -> Any:
    """The module that the plan chose for `op`."""
    from kinema.ops.plan import OPS

    chosen = next(choice.backend for choice in plan.choices if choice.op == op)
    (known,) = (o for o in OPS if o.name == op)
    return next(i for i in known.implementations if i.backend == chosen).load()


def _seconds(call: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    import torch

    for _ in range(WARMUP):
        call()
    if device.type != "cuda":
        measured = []
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            measured.append(time.perf_counter() - started)
        return measured
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def _table(report: Report) -> str:
    lines = [f"{'op, case':44} {'median µs':>10} {'GFLOP/s':>9} {'GB/s':>7} {'at least µs':>12} {'reached':>8}"]
    for row in report["rows"]:
        name = f"{row['op']} {row['case']}"
        if "failed" in row:
            lines.append(f"{name:44} {row['failed']}")
            continue
        median = row["seconds"]["median"]
        line = f"{name:44} {1e6 * median:10.1f} {row['flops'] / median / 1e9:9.1f} {row['bytes'] / median / 1e9:7.0f}"
        if "bound_us" in row:
            reached = row["bound_us"] / (1e6 * median)
            line += f" {row['bound_us']:12.1f} {reached:7.0%} of {row['bound_by']}"
        lines.append(line)
    return "\n".join(lines)
