"""kinema bench peers: the same forward, decode and generation by kinema and by others, in interleaved rounds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.bench.model import add_size_arguments, open_pipeline, request_of
from kinema.cli.load import MODEL_HELP, add_load_arguments, load_words
from kinema.cli.output import emit
from kinema.errors import KinemaError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinema.bench.model_parts import Sizes
    from kinema.bench.peers import Peer
    from kinema.bench.report import Report
    from kinema.pipeline import VideoPipeline

TIMED = (
    "a forward of a part, or a whole generation without writing it, loaded and warm, all in this process; "
    "process: one of its own each time, from its start to its end, which leaves an mp4"
)
PARTS = ("transformer", "vae", "generation")
PROCESS = "process"  # only where it is asked for: it loads the model in every round
KINEMA, REFERENCE = "kinema", "kinema, reference ops"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    add_size_arguments(parser)
    parser.add_argument("--peer", action="append", metavar="NAME", help="only this; may be given several times")
    parser.add_argument(
        "--external", metavar="COMMAND", help="another program's generation, with {prompt}, {steps}, {seed}, … in it"
    )
    parser.add_argument(
        "--part",
        action="append",
        choices=(*PARTS, PROCESS),
        help=f"only this; may be given several times (left out: all but {PROCESS})",
    )
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="steps of the generation (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.model_parts import sizes_for
    from kinema.bench.op_counts import unit_of
    from kinema.bench.peaks import probe
    from kinema.bench.peers import PEERS, missing, peer, processes
    from kinema.bench.peers.external import External
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.bench.rounds import say_if_few

    names = arguments.peer or list(PEERS)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise RequestError(f"no peer {unknown[0]!r}: wanted some of {', '.join(PEERS)}")
    if arguments.rounds < 1 or arguments.steps < 1:
        raise RequestError(f"{arguments.rounds} rounds of {arguments.steps} steps: wanted at least 1 of each")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    pipe = open_pipeline(arguments)
    if PROCESS in (arguments.part or ()) and pipe.ops.device.type != "cpu":
        raise RequestError(f"--part {PROCESS} is for the CPU, and kinema would run on {pipe.ops.device}")
    peers: dict[str, Peer] = {name: peer(name) for name in names}
    if arguments.external is not None:
        peers["external"] = External(arguments.external)
    absent = {name: reason for name, p in peers.items() if (reason := missing(p, pipe.ops.device)) is not None}
    present = {name: p for name, p in peers.items() if name not in absent}
    plain = open_pipeline(arguments, backend="reference", precision="fp32", quantize_attention=None)
    sizes = sizes_for(pipe, arguments.tokens, arguments.text_tokens)
    rows: list[Report] = []
    unit = unit_of(pipe.ops.plan.target.precision.activations)
    peaks = probe(pipe.ops.device, [unit])
    for part in arguments.part or PARTS:
        if part == PROCESS:
            request = request_of(pipe, sizes, arguments.steps)
            rows += processes.measure(pipe, present, request, load_words(arguments), arguments.rounds)
        else:
            rows += measure(part, pipe, plain, present, sizes, arguments)
        rows += [{"name": f"{part}, {name}", "failed": reason} for name, reason in absent.items()]
        peaks = peaks.better(probe(pipe.ops.device, [unit], rounds=3))
    for row in rows:
        if "flops" in row and "seconds" in row:
            row["of_peak"] = peaks.share_of_flops({unit: row["flops"]}, row["seconds"]["median"])
    report = {
        **provenance("peers", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(pipe.folder.path),
        "grid": list(sizes.grid),
        "text_tokens": sizes.text,
        "settings": {name: p.settings for name, p in peers.items()},
        "peaks": peaks.as_dict(),
        "rows": rows,
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def measure(
    part: str,
    pipe: VideoPipeline,
    plain: VideoPipeline,
    peers: Mapping[str, Peer],
    sizes: Sizes,
    arguments: argparse.Namespace,
) -> list[Report]:
    """A row for kinema, one for its reference and one for every peer that has this part."""
    import torch

    from kinema.bench import gate
    from kinema.bench.intervals import paired_ratio
    from kinema.bench.model_counts import counted
    from kinema.bench.model_parts import calls_of, inputs_for
    from kinema.bench.op_counts import unit_of
    from kinema.bench.peaks import HELD, held
    from kinema.bench.report import timing
    from kinema.bench.rounds import interleaved

    folder = Path(pipe.folder.path)
    inputs, target = inputs_for(pipe, sizes), pipe.ops.plan.target
    dtype = target.precision.activations
    request = request_of(pipe, sizes, arguments.steps)
    if part == "generation":
        calls = {KINEMA: _generation(pipe, request), REFERENCE: _generation(plain, request)}
    else:
        calls = {KINEMA: calls_of(pipe, inputs)[part], REFERENCE: calls_of(plain, inputs)[part]}
    failed: list[Report] = []
    for name, peer in peers.items():
        try:
            call = (
                peer.generation(folder, request, target.device, dtype)
                if part == "generation"
                else peer.forward(folder, part, inputs, dtype, torch.get_num_threads())
            )
            if call is not None:
                call()  # compiles if it has to; a peer that cannot run fails here
                calls[name] = call
        except KinemaError:
            raise
        except Exception as error:  # a peer may fail in its own way; the others are still measured
            failed.append({"name": f"{part}, {name}", "failed": f"{type(error).__name__}: {error}".splitlines()[0]})
    with counted(plain.ops) as tally:
        truth = calls[REFERENCE]()
    probe = held(target.device, unit_of(dtype))
    if probe is not None:
        calls[HELD] = probe[0]
    samples = interleaved(calls, arguments.rounds, device=target.device, warmup=1, shortest=0)
    rows = []
    peak = samples.pop(HELD, None)
    for name, seconds in samples.items():
        row = {**timing(f"{part}, {name}", seconds), "flops": tally.flops}
        result = calls[name]()
        if result is not None:
            row["error"] = gate.distance(result, truth).as_dict()
        if name != KINEMA:
            row["kinema_is_faster"] = paired_ratio(seconds, samples[KINEMA]).as_dict()
        if peak is not None and probe is not None:
            row["of_held"] = paired_ratio([s * tally.flops / probe[1] for s in peak], seconds).as_dict()
        rows.append(row)
    return rows + failed


def _generation(pipe: VideoPipeline, request: dict[str, Any]) -> Callable[[], Any]:
    import torch

    def call() -> torch.Tensor:
        output = pipe(**request, progress=False)
        assert not isinstance(output, tuple)
        return torch.from_numpy(output.frames)

    return call


def _table(report: Report) -> str:
    from kinema.bench.intervals import Estimate, said

    target = report["target"]
    attention = f" with attention in {target['attention']}" if "attention" in target else ""
    lines = [
        f"{report['model']}: grid {' x '.join(map(str, report['grid']))}, {report['text_tokens']} tokens of text, "
        f"{report['threads']} threads; kinema in {target['precision']}{attention} on {target['device']}, its "
        "reference ops in fp32",
        *(f"  {name}: {settings}" for name, settings in report["settings"].items()),
        f"  {'':36} {'median s':>10} {'of peak':>8} {'held':>7} {'error':>8} {'largest':>8}  kinema is faster",
    ]
    for row in report["rows"]:
        if "seconds" not in row:
            lines.append(f"  {row['name']:36} {row['failed']}")
            continue
        errors = row.get("error")
        cells = [f"{errors[key]:.1e}" if errors else "" for key in ("relative", "largest")]
        ratio = said(Estimate(**row["kinema_is_faster"])) if "kinema_is_faster" in row else ""
        of_peak = f"{row['of_peak']:.1%}" if row.get("of_peak") is not None else ""
        of_held = f"{row['of_held']['median']:.1%}" if "of_held" in row else ""
        line = (
            f"  {row['name']:36} {row['seconds']['median']:10.4f} {of_peak:>8} {of_held:>7} {cells[0]:>8} {cells[1]:>8}"
        )
        lines.append(f"{line}  {ratio}".rstrip())
        lines += [f"    {stage:34} {seconds:10.4f}" for stage, seconds in row.get("stages", {}).items()]
    return "\n".join(lines)
