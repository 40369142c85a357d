"""kinema bench ops: each op at production sizes, by every implementation that is right, beside what the machine can do.

A case's implementations and torch's own op run in interleaved rounds. What fails the gate has no speed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kinema.commands.load import add_target_arguments
from kinema.commands.output import emit
from kinema.commands.parser import text
from kinema.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from kinema.bench.op_calls import Call
    from kinema.bench.op_cases import Case
    from kinema.bench.op_counts import Count
    from kinema.bench.peaks import Peaks
    from kinema.bench.report import Report
    from kinema.ops.common import Implementation, Target

TIMED = "one call of an op in this process, its weights packed and its inputs in place"
REFERENCE, TORCH = "reference", "torch's own op"


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

    from kinema.bench.op_cases import all_cases
    from kinema.bench.peaks import probe
    from kinema.bench.report import check_report, provenance, write_report
    from kinema.ops import plan_ops, target_for
    from kinema.ops.common import PRECISIONS
    from kinema.progress import steps_bar

    if arguments.rounds < 1:
        raise RequestError(f"{arguments.rounds} rounds: wanted at least 1")
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
        for case in all_cases()
        if wanted in case.name and case.op in (arguments.op or [case.op]) and target.precision.name in case.precisions
    ]
    if not work:
        raise RequestError(
            f"no case of {', '.join(arguments.op or ['any op'])} in {', '.join(t.precision.name for t in targets)} has "
            f"{wanted!r} in its name; the cases are in benchmarks/op_cases.py"
        )
    rows: list[Report] = []
    peaks = probe(device, plan.target.precision.activations)
    with steps_bar(len(work), unit="case") as advance:
        for case, target in work:
            rows += measure(case, target, candidates(case.op, target, arguments.backend), arguments.rounds)
            peaks = peaks.better(probe(device, plan.target.precision.activations, rounds=3))
            advance()
    for row in rows:
        row |= _shares(row, peaks)
    report = {**provenance("ops", arguments.words, plan, timed=TIMED), "peaks": vars(peaks), "rows": rows}
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

    from kinema.bench.rounds import interleaved

    rows = {i.backend: _row(case, target, i.backend) for i in implementations}
    try:
        with torch.inference_mode():
            calls, work = _gated(case, target, implementations, rows)
            samples = interleaved(calls, rounds, device=target.device) if calls else {}
    except torch.OutOfMemoryError:
        return [row | {"failed": "out of memory"} for row in rows.values()]
    for backend, seconds in samples.items():
        rows.setdefault(backend, _row(case, target, backend)).update(_timed(backend, samples, seconds, work, target))
    return list(rows.values())


def _row(case: Case, target: Target, backend: str) -> Report:
    precision = target.precision.name
    name = f"{case.op} {case.name}, {precision}, {backend}"
    return {"name": name, "op": case.op, "case": case.name, "precision": precision, "implementation": backend}


def _gated(
    case: Case, target: Target, implementations: Sequence[Implementation], rows: dict[str, Report]
) -> tuple[dict[str, Callable[[], Any]], Count]:
    """The calls that may be timed and the work of each; `rows` learns of errors and refusals."""
    from kinema.bench import gate
    from kinema.bench.op_calls import Inputs
    from kinema.bench.op_counts import count
    from kinema.bench.torch_ops import torch_call

    plain_functions = next(i for i in implementations if i.backend == REFERENCE).load()
    truth = case.prepare(plain_functions, target, gate.ExactInputs(target.device))()
    reference = case.prepare(plain_functions, target, Inputs(target.device))
    result = reference()
    work = count(case.op, reference, result)
    plain = gate.distance(result, truth)
    allowed = gate.allowance(plain, *_rounding(reference, result, target))
    calls: dict[str, Callable[[], Any]] = {}
    for implementation in implementations:
        backend = implementation.backend
        call, found = reference, plain
        if backend != REFERENCE:
            call = case.prepare(implementation.load(), target, Inputs(target.device))
            found = gate.distance(call(), truth)
        rows[backend]["error"] = found.as_dict()
        refusal = gate.refusal(found, allowed) if backend != REFERENCE else None
        if refusal is None:
            calls[backend] = call
        else:
            rows[backend]["refused"] = refusal
    nearest = torch_call(case.op, reference)
    if nearest is not None:
        calls[TORCH] = nearest
    return calls, work


def _rounding(call: Call, result: Any, target: Target) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtype of a result, and the 8 bits that activations were rounded to on the way to it."""
    import torch

    from kinema.ops.common import Quantized

    kind = target.precision.quantize_activations
    eight = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[kind] if kind is not None else None
    if isinstance(result, Quantized):
        return target.precision.activations, result.data.dtype
    first = result[0] if isinstance(result, tuple) else result
    return first.dtype, eight


def _timed(backend: str, samples: dict[str, list[float]], seconds: list[float], work: Count, target: Target) -> Report:
    import torch

    from kinema.bench.gpus import bound, of_device
    from kinema.bench.intervals import paired_ratio
    from kinema.bench.report import spread

    found: Report = {"samples": seconds, "seconds": spread(seconds), "flops": work.flops, "bytes": work.bytes}
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
    return {
        "of_peak": peaks.share_of_flops(row["flops"], median),
        "of_copy": peaks.share_of_bytes(row["bytes"], median),
    }


def _table(report: Report) -> str:
    from kinema.bench.intervals import Estimate, said

    peaks = report["peaks"]
    lines = [
        f"measured here: {peaks['flops'] / 1e9:.0f} GFLOP/s in {peaks['dtype']} ({peaks['how']}), "
        f"copies of {peaks['bytes'] / 1e9:.1f} GB/s; times faster than the reference and than torch's own op",
        f"{'op, case, precision, implementation':58} {'median µs':>10} {'GFLOP/s':>9} {'of peak':>8} {'GB/s':>7} "
        f"{'of copy':>8} {'error':>8}  {'than the reference':27} {'than torch':27}",
    ]
    for row in report["rows"]:
        if "seconds" not in row:
            lines.append(f"{row['name']:58} {row.get('failed') or row['refused']}")
            continue
        median = row["seconds"]["median"]
        ratios = [said(Estimate(**row[k])) if k in row else "" for k in ("than_reference", "than_torch")]
        error = f"{row['error']['relative']:.1e}" if "error" in row else ""
        line = (
            f"{row['name']:58} {1e6 * median:10.1f} {row['flops'] / median / 1e9:9.1f} {row['of_peak']:8.0%} "
            f"{row['bytes'] / median / 1e9:7.1f} {row['of_copy']:8.0%} {error:>8}  {ratios[0]:27} {ratios[1]:27}"
        )
        if "bound_us" in row:
            line += f" {row['bound_us'] / (1e6 * median):7.0%} of {row['bound_by']}"
        lines.append(line.rstrip())
    return "\n".join(lines)
