"""kinema bench ops: each op at production sizes, by every implementation that is right, beside the machine's peak.

A case's implementations and torch's own op run in interleaved rounds. What fails the gate gets no speed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kinema.cli.load import add_target_arguments
from kinema.cli.output import emit
from kinema.cli.parser import text
from kinema.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from kinema.bench.op_counts import Count
    from kinema.bench.peaks import Peaks
    from kinema.bench.report import Report
    from kinema.ops.calls import Call
    from kinema.ops.cases import Case
    from kinema.ops.common import Implementation, Target

TIMED = "one call of an op in this process, its weights packed, its inputs in place, and memory for its result at hand"
REFERENCE, TORCH = "reference", "torch's own op"
HELD_FROM = 2e9  # FLOPs: shorter calls fall between disturbances, as the probes of the peak do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", help="only this op; may be given several times")
    parser.add_argument(
        "--case", type=text, metavar="TEXT", help="only cases with this in their name ('sample' on a CPU, all on a GPU)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (left out: torch's choice)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    group = add_target_arguments(parser)
    group.description = "--precision all: every precision; --backend auto: every implementation that can run"


def run(arguments: argparse.Namespace) -> int:
    import torch

    from kinema.bench.freed_memory import keeping_freed_bytes
    from kinema.bench.peaks import probe, units_of
    from kinema.bench.report import check_report, provenance, write_report
    from kinema.bench.rounds import say_if_few
    from kinema.ops import plan_ops, target_for
    from kinema.ops.cases import all_cases, cpu_cases
    from kinema.ops.common import PRECISIONS
    from kinema.request.progress import steps_bar

    if arguments.rounds < 1:
        raise RequestError(f"{arguments.rounds} rounds: wanted at least 1")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = target_for(arguments.device).device
    names = list(PRECISIONS[device.type]) if arguments.precision == "all" else [arguments.precision]
    targets = [target_for(device, name) for name in names]
    plan = plan_ops(targets[0], arguments.backend)  # refuses a backend that there is not
    wanted = arguments.case or ("sample" if device.type == "cpu" else "")
    work = [
        (case, target)
        for target in targets
        for case in (*all_cases(), *(cpu_cases() if device.type == "cpu" else ()))
        if wanted in case.name and case.op in (arguments.op or [case.op]) and target.precision.name in case.precisions
    ]
    if not work:
        raise RequestError(
            f"no case of {', '.join(arguments.op or ['any op'])} in {', '.join(t.precision.name for t in targets)} has "
            f"{wanted!r} in its name; the cases are in engine/ops/cases.py"
        )
    rows: list[Report] = []
    units = units_of(targets)
    peaks = probe(device, units)
    with keeping_freed_bytes(), steps_bar(len(work), unit="case") as advance:
        for case, target in work:
            rows += measure(case, target, candidates(case.op, target, arguments.backend), arguments.rounds)
            peaks = peaks.better(probe(device, units, rounds=3))
            advance()
    for row in rows:
        row |= _shares(row, peaks)
    head = provenance("ops", arguments.words, plan, timed=TIMED, backend=arguments.backend)
    report = {**head, "peaks": peaks.as_dict(), "rows": rows}
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def candidates(op: str, target: Target, backend: str = "auto") -> list[Implementation]:
    """The implementations of `op` that run on `target`, the reference last; of one backend and the reference."""
    from kinema.ops.plan import OPS

    (known,) = (o for o in OPS if o.name == op)
    found = [
        i
        for i in known.implementations
        if i.backend in ((i.backend if backend == "auto" else backend), REFERENCE)
        and not i.unsupported(target)
        and not (i.backend == "triton" and target.device.type == "cpu")  # the interpreter's speed means nothing
    ]
    return sorted(found, key=lambda i: i.backend == REFERENCE)


def measure(case: Case, target: Target, implementations: Sequence[Implementation], rounds: int) -> list[Report]:
    """A row for each implementation and for torch's own op: its time and work, or why it has none."""
    import torch

    from kinema.bench.intervals import paired_ratio
    from kinema.bench.peaks import HELD, held

    rows = {i.backend: _row(case, target, i.backend) for i in implementations}
    with torch.inference_mode():
        try:
            calls, work = gated(case, target, implementations, rows)
        except Exception as error:  # the case itself: without inputs or a truth, no implementation can be judged
            return [row | {"failed": failure(error)} for row in rows.values()]
        probe = held(target.device, work.unit) if work.flops > HELD_FROM else None
        if probe is not None:
            calls[HELD] = probe[0]
        samples = _samples(calls, rounds, target, rows)
    peak = samples.pop(HELD, None)
    for backend, seconds in samples.items():
        rounds_to = _chosen(calls[backend]) if backend == "cpu" else None
        own = replace(work, unit="bf16") if rounds_to is torch.bfloat16 else work
        rows[backend].update(_timed(backend, samples, seconds, own, target))
        if peak is not None and probe is not None and own.unit == work.unit:
            rows[backend]["of_held"] = paired_ratio([s * work.flops / probe[1] for s in peak], seconds).as_dict()
    return list(rows.values())


def failure(error: Exception) -> str:
    """Why a row has no time, in one line."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _samples(
    calls: dict[str, Callable[[], Any]], rounds: int, target: Target, rows: dict[str, Report]
) -> dict[str, list[float]]:
    """Interleaved rounds of the calls that still run; `rows` gets the reasons why others do not."""
    from kinema.bench.rounds import interleaved

    while calls:
        try:
            return interleaved(calls, rounds, device=target.device)
        except Exception as error:
            broken = {name: reason for name, call in calls.items() if (reason := _tried(call)) is not None}
            for name, reason in (broken or dict.fromkeys(calls, failure(error))).items():
                if name in rows:
                    rows[name]["failed"] = reason
                del calls[name]
    return {}


def _tried(call: Callable[[], Any]) -> str | None:
    """Why a call fails; None if it does not."""
    try:
        call()
    except Exception as error:
        return failure(error)
    return None


def _row(case: Case, target: Target, backend: str) -> Report:
    precision = target.precision.name
    name = f"{case.op} {case.name}, {precision}, {backend}"
    return {"name": name, "op": case.op, "case": case.name, "precision": precision, "implementation": backend}


def gated(
    case: Case, target: Target, implementations: Sequence[Implementation], rows: dict[str, Report]
) -> tuple[dict[str, Callable[[], Any]], Count]:
    """The calls that may be timed and the work of each; `rows` gets the errors and refusals."""
    from kinema.bench import gate
    from kinema.bench.op_counts import count
    from kinema.bench.torch_ops import torch_call
    from kinema.ops.calls import Inputs

    plain_functions = next(i for i in implementations if i.backend == REFERENCE).load()
    exact = case.prepare(plain_functions, target, gate.ExactInputs(target.device))
    reference = case.prepare(plain_functions, target, Inputs(target.device))
    # before they are called: a call may update its cache
    nearest, in_full = torch_call(case.op, reference), torch_call(case.op, exact)
    truth, result = exact(), reference()
    work = count(case.op, reference, result)
    plain = gate.distance(result, truth)
    calls: dict[str, Callable[[], Any]] = {}

    def admit(backend: str, make: Callable[[], Callable[[], Any]], wanted: Any) -> None:
        """Adds it to `calls` if its result is as wanted; else adds the reason to its row."""
        try:
            call = make()
            found = gate.distance(call(), wanted)
            allowed = gate.allowance(plain, *_rounding(call, result, target))
        except Exception as error:  # one implementation's, and the others are still to be measured
            rows[backend]["failed"] = failure(error)
            return
        rows[backend]["error"] = found.as_dict()
        refusal = gate.refusal(found, allowed)
        if refusal is None:
            calls[backend] = call
        else:
            rows[backend]["refused"] = refusal

    for implementation in implementations:
        backend = implementation.backend
        if backend == REFERENCE:
            rows[backend]["error"], calls[backend] = plain.as_dict(), reference
        else:
            admit(backend, partial(_prepared, case, target, implementation), truth)
    if nearest is not None and in_full is not None:
        rows[TORCH] = _row(case, target, TORCH)
        # an op that does all of the contract is compared with the truth, one that does less with itself in float64
        admit(TORCH, lambda: nearest.call, truth if nearest.whole else in_full.call())
    return calls, work


def _prepared(case: Case, target: Target, implementation: Implementation) -> Call:
    from kinema.ops.calls import Inputs

    return case.prepare(implementation.load(), target, Inputs(target.device))


def _rounding(call: Any, result: Any, target: Target) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtype of a result, and the dtype that activations were rounded to: 8-bit, or what `call` chose."""
    import torch

    from kinema.ops.common import Quantized

    kind = target.precision.quantize_activations
    rounded = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[kind] if kind is not None else None
    rounded = _chosen(call) or rounded
    if isinstance(result, Quantized):
        return target.precision.activations, result.data.dtype
    first = result[0] if isinstance(result, tuple) else result
    return first.dtype, rounded


def _chosen(call: Any) -> torch.dtype | None:
    """The dtype that a call's packed weight has x rounded to, or attention's queries are in beside wider values."""

    from kinema.ops.attention import KV
    from kinema.ops.linear import LinearWeight

    for a in getattr(call, "args", ()):
        if isinstance(a, LinearWeight):
            return a.rounds_to
        if isinstance(a, KV) and a.v.dtype != a.k.dtype:
            return a.k.dtype
    return None


def _timed(backend: str, samples: dict[str, list[float]], seconds: list[float], work: Count, target: Target) -> Report:
    import torch

    from kinema.bench.gpus import bound, of_device
    from kinema.bench.intervals import paired_ratio
    from kinema.bench.report import spread

    found: Report = {"samples": seconds, "seconds": spread(seconds), "flops": work.flops, "bytes": work.bytes}
    found["unit"] = work.unit
    for other, key in ((REFERENCE, "than_reference"), (TORCH, "than_torch")):
        if other in samples and backend != other:
            found[key] = paired_ratio(samples[other], seconds).as_dict()
    gpu = of_device(torch.cuda.get_device_name(target.device)) if target.device.type == "cuda" else None
    least = bound(gpu, work) if gpu is not None else None
    return found | ({"bound_us": least.microseconds, "bound_by": least.by} if least is not None else {})


def _shares(row: Report, peaks: Peaks) -> Report:
    if "seconds" not in row:
        return {}
    median = row["seconds"]["median"]
    of_peak = peaks.share_of_flops({row["unit"]: row["flops"]}, median)
    of_copy = {"of_copy": peaks.share_of_bytes(row["bytes"], median)}
    return of_copy if of_peak is None else {"of_peak": of_peak, **of_copy}


def _table(report: Report) -> str:
    from kinema.bench.intervals import Estimate, said
    from kinema.bench.peaks import said as peaks_said

    lines = [
        f"measured here: {peaks_said(report['peaks'])}; times faster than the reference and than torch's own op",
        f"{'op, case, precision, implementation':58} {'median µs':>10} {'GFLOP/s':>9} {'of peak':>8} {'held':>5} "
        f"{'GB/s':>7} {'of copy':>8} {'error':>8}  {'than the reference':27} {'than torch':27}",
    ]
    for row in report["rows"]:
        if "seconds" not in row:
            lines.append(f"{row['name']:58} {row.get('failed') or row['refused']}")
            continue
        median = row["seconds"]["median"]
        ratios = [said(Estimate(**row[k])) if k in row else "" for k in ("than_reference", "than_torch")]
        error = f"{row['error']['relative']:.1e}" if "error" in row else ""
        of_peak = f"{row['of_peak']:.0%}" if "of_peak" in row else ""
        of_held = f"{row['of_held']['median']:.0%}" if "of_held" in row else ""
        line = (
            f"{row['name']:58} {1e6 * median:10.1f} {row['flops'] / median / 1e9:9.1f} {of_peak:>8} "
            f"{of_held:>5} {row['bytes'] / median / 1e9:7.1f} {row['of_copy']:8.0%} {error:>8}  "
            f"{ratios[0]:27} {ratios[1]:27}"
        )
        if "bound_us" in row:
            line += f" {row['bound_us'] / (1e6 * median):7.0%} of {row['bound_by']}"
        lines.append(line.rstrip())
    return "\n".join(lines)
