"""kinema bench generate: what a whole generation costs, stage by stage."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from kinema.cli.load import MODEL_HELP, add_load_arguments, open_to_measure
from kinema.cli.output import emit
from kinema.cli.parser import text
from kinema.cli.request import add_request_arguments, request_from
from kinema.errors import RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest
    from kinema.request.stats import Stats

TIMED = "each stage of a generation in this process, decoded and not written; loading is a stage of its own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", type=text, nargs="?", default="a red circle moving left", help="(%(default)s)")
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="rounds before them (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_request_arguments(parser)
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.bench.rounds import say_if_few
    from kinema.request.progress import steps_bar

    if arguments.rounds < 1 or arguments.warmup < 0:
        raise RequestError(f"{arguments.rounds} rounds after {arguments.warmup} of warm-up: wanted at least 1 and 0")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    request = request_from(arguments)
    pipe = open_to_measure(arguments)
    request = pipe.complete(request if request.seed is not None else replace(request, seed=0))
    rounds = []
    with steps_bar(arguments.warmup + arguments.rounds, unit="round") as advance:
        for _ in range(arguments.warmup + arguments.rounds):
            rounds.append(measure(pipe, request))
            advance()
    report = {
        **provenance("generate", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(pipe.folder.path),
        "request": _described(request),
        **summary(rounds, arguments.warmup),
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def measure(pipe: VideoPipeline, request: GenerationRequest) -> tuple[Stats, str]:
    """One generation, decoded and not written: its stats, and the SHA-256 of its frames (uint8)."""
    from kinema.media.postprocess import to_uint8

    state = pipe.prepare(request, streamed=True)
    pipe.run(state)
    digest = hashlib.sha256()
    with state.stats.stage("decode", pipe.components.loading):
        for chunk in pipe.decode_chunks(state):
            digest.update(to_uint8(chunk).tobytes())
    return state.measured(), digest.hexdigest()


def summary(rounds: list[tuple[Stats, str]], warmup: int) -> Report:
    """The figures of the rounds. `first` is the very first round, which loads the model."""
    from kinema.bench.report import spread, timing

    measured = [stats for stats, _ in rounds[warmup:]]
    samples = {name: [stats.seconds[name] for stats in measured] for name in measured[0].seconds}
    samples["total"] = [stats.total_seconds for stats in measured]
    return {
        "steps": measured[0].steps,
        "forwards": measured[0].forwards,
        "warmup": warmup,
        "seconds": {name: spread(seconds) for name, seconds in samples.items()},
        "rows": [timing(name, seconds) for name, seconds in samples.items()],
        "first": dict(rounds[0][0].seconds),
        "rounds": [dict(stats.seconds) for stats in measured],
        "peak_bytes": max(stats.peak_bytes or 0 for stats in measured) or None,
        # equal digests mean equal videos; a faster run whose digest differs has to say by how much
        "frames_sha256": sorted({digest for _, digest in rounds}),
    }


def _described(request: GenerationRequest) -> Report:
    num_frames, height, width = request.clip
    return {
        "prompt": request.prompt,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "samples": request.samples,
        "seed": request.seed,
    }


def _table(report: Report) -> str:
    asked = report["request"]
    lines = [
        f"{report['model']}: {asked['samples']} x {asked['num_frames']} frames of {asked['width']}x{asked['height']}, "
        f"{report['steps']} steps, {report['forwards']} forwards, {report['target']['precision']} on "
        f"{report['target']['device']}, {len(report['rounds'])} rounds",
        f"  {'seconds':16} {'median':>9} {'min':>9} {'max':>9}",
    ]
    for name, values in report["seconds"].items():
        lines.append(f"  {name:16} {values['median']:9.3f} {values['min']:9.3f} {values['max']:9.3f}")
    if report["peak_bytes"] is not None:
        lines.append(f"  peak memory {report['peak_bytes'] / 2**30:.2f} GiB")
    if len(report["frames_sha256"]) > 1:
        lines.append(f"  the rounds gave {len(report['frames_sha256'])} different videos from one seed")
    return "\n".join(lines)
