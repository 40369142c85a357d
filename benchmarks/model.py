"""kinema bench model: a forward of each part, and a whole generation by stage, with memory, cold start and FLOPs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, load_options, open_to_measure
from kinema.cli.output import emit
from kinema.errors import KinemaError, RequestError

if TYPE_CHECKING:
    from kinema.bench.model_parts import Sizes
    from kinema.bench.report import Report
    from kinema.pipeline import VideoPipeline

TIMED = (
    "a forward of a part in this process, loaded and warm; a generation's stages, loading apart, nothing written; "
    "cold start: from the start of a process of its own to its first frame"
)
PARTS = ("transformer", "vae", "text", "generation", "cold")
PATIENCE = 4  # times --rounds, the most rounds of a forward
# a process that generates as `kinema generate` does, and says when it has the first frames
COLD = """
import sys, json
from kinema.pipeline import VideoPipeline
from kinema.request.generation import GenerationRequest
model, options, request = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
pipe = VideoPipeline.from_pretrained(model, **options)
state = pipe.prepare(GenerationRequest(**request))
pipe.run(state)
next(pipe.decode_chunks(state)).cpu()
print("frame", flush=True)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    add_size_arguments(parser)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be given several times")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="steps of the generation (%(default)s)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=10,
        metavar="N",
        help=f"measured rounds; of a forward up to {PATIENCE} times as many if they are noisy (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how much of it."""
    parser.add_argument("--config", help="random weights of a published size, such as wan-1.3b, instead of --model")
    parser.add_argument("--layers", type=int, metavar="N", help="layers of --config's transformer, instead of all")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of the video (left out: the model's clip)")
    parser.add_argument("--text-tokens", type=int, metavar="N", help="tokens of the prompt (left out: the model's)")


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.model_parts import sizes_for
    from kinema.bench.peaks import probe, units_of
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.bench.rounds import say_if_few

    if arguments.rounds < 1 or arguments.steps < 1:
        raise RequestError(f"{arguments.rounds} rounds of {arguments.steps} steps: wanted at least 1 of each")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    parts = arguments.part or list(PARTS)
    pipe = open_pipeline(arguments)
    sizes = sizes_for(pipe, arguments.tokens, arguments.text_tokens)
    units = units_of([pipe.ops.plan.target])
    peaks = probe(pipe.ops.device, units)
    rows = []
    for part in parts:
        if part == "generation":
            rows += generation(pipe, sizes, arguments.steps, arguments.rounds)
        elif part == "cold":
            rows.append(cold_start(pipe, sizes, arguments))
        else:
            rows.append(forward(pipe, sizes, part, arguments.rounds))
        peaks = peaks.better(probe(pipe.ops.device, units, rounds=3))
    for row in rows:
        if "flops" in row:
            row["of_peak"] = peaks.share_of_flops(row["flops_by_unit"], row["seconds"]["median"])
    report = {
        **provenance("model", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(pipe.folder.path),
        "grid": list(sizes.grid),
        "text_tokens": sizes.text,
        "peaks": peaks.as_dict(),
        "rows": rows,
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def open_pipeline(arguments: argparse.Namespace, **changes: Any) -> VideoPipeline:
    """The pipeline of --model, or of --config, whose folder is written if missing. changes: load options."""
    from kinema.bench.model_parts import folder_of

    if arguments.layers is not None and arguments.config is None:
        raise RequestError("--layers goes with --config: a model of --model always has all its layers")
    if arguments.config is not None:
        folder = folder_of(arguments.config, arguments.layers, lambda line: print(line, file=sys.stderr))
        arguments = argparse.Namespace(**{**vars(arguments), "model": folder})
    return open_to_measure(arguments, **changes)


def forward(pipe: VideoPipeline, sizes: Sizes, part: str, rounds: int) -> Report:
    """A row of one part: its time when warm, the time of its first call, loading included, its FLOPs and memory."""
    from kinema.bench.intervals import FEWEST, vague
    from kinema.bench.model_counts import counted
    from kinema.bench.model_parts import calls_of, inputs_for
    from kinema.bench.report import timing
    from kinema.bench.rounds import interleaved
    from kinema.buffers.machine import held_bytes
    from kinema.buffers.peak import peak_bytes, reset_peak

    call = calls_of(pipe, inputs_for(pipe, sizes))[part]
    reset = reset_peak(pipe.ops.device)
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    with counted(pipe.ops) as tally:
        call()
    held = held_bytes(pipe.ops.device)
    samples: list[float] = []
    while len(samples) < rounds or (rounds >= FEWEST and len(samples) < PATIENCE * rounds and vague(samples)):
        warmup = 0 if samples else 1
        samples += interleaved({part: call}, rounds, device=pipe.ops.device, warmup=warmup, shortest=0)[part]
    row = timing(f"{part}, {sizes.text if part == 'text' else sizes.tokens} tokens", samples)
    memory = {"peak_bytes": peak_bytes(pipe.ops.device), "held_bytes": held, "peak_is_of_this": reset}
    return {
        **row,
        "first_seconds": first,
        "flops": tally.flops,
        "flops_by_op": tally.by_op,
        "flops_by_unit": tally.by_unit,
        **memory,
    }


def generation(pipe: VideoPipeline, sizes: Sizes, steps: int, rounds: int) -> list[Report]:
    """Rows of a whole generation's stages; the first round, which loads, is reported separately."""
    from kinema.bench.generate import measure
    from kinema.bench.report import timing
    from kinema.buffers.peak import reset_peak
    from kinema.request.generation import GenerationRequest

    request = replace(pipe.complete(GenerationRequest(**request_of(pipe, sizes, steps))), seed=0)
    reset = reset_peak(pipe.ops.device)
    first, _ = measure(pipe, request)
    stats = [measure(pipe, request)[0] for _ in range(rounds)]
    rows = []
    for stage in [*stats[0].seconds, "total"]:
        taken = [s.total_seconds if stage == "total" else s.seconds[stage] for s in stats]
        once = first.total_seconds if stage == "total" else first.seconds.get(stage)
        row = timing(f"generation, {stage}, {steps} steps of {sizes.tokens} tokens", taken)
        rows.append({**row, "first_seconds": once})
    peak = max(s.peak_bytes or 0 for s in (first, *stats)) or None
    rows[-1] |= {"peak_bytes": peak, "peak_is_of_this": reset}  # of the whole: stages share memory
    return rows


def request_of(pipe: VideoPipeline, sizes: Sizes, steps: int) -> dict[str, Any]:
    """Fields of a request for a clip and a prompt of this size."""
    patch, vae = pipe.transformer_config.patch_size, pipe.model.configs["vae"]
    t, h, w = (n * p for n, p in zip(sizes.grid, patch, strict=True))
    return {
        "prompt": "a red circle moving left",
        "num_frames": 1 + (t - 1) * vae.scale_factor_temporal,
        "height": h * vae.scale_factor_spatial,
        "width": w * vae.scale_factor_spatial,
        "num_inference_steps": steps,
        "guidance_scale": pipe.defaults.guidance_scale,  # other software has a default of its own
        "max_sequence_length": sizes.text,
        "seed": 0,
    }


def cold_start(pipe: VideoPipeline, sizes: Sizes, arguments: argparse.Namespace) -> Report:
    """A row of separate processes, from their start to the first frames."""
    import json

    from kinema.bench.report import timing

    words = [json.dumps(load_options(arguments)), json.dumps(request_of(pipe, sizes, arguments.steps))]
    command = [sys.executable, "-c", COLD, str(pipe.folder.path), *words]
    samples = []
    for _ in range(max(1, arguments.rounds // 2)):
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            samples.append(time.perf_counter() - started)
        if said != "frame\n" or process.returncode:
            raise KinemaError(f"a generation in a process of its own ended with code {process.returncode}")
    return timing(f"cold start, {arguments.steps} steps of {sizes.tokens} tokens, to the first frame", samples)


def _table(report: Report) -> str:
    from kinema.bench.peaks import said

    lines = [
        f"{report['model']}: grid {' x '.join(map(str, report['grid']))}, {report['text_tokens']} tokens of text, "
        f"{report['target']['precision']} on {report['target']['device']}, {report['threads']} threads",
        f"measured here: {said(report['peaks'])}",
        f"  {'':60} {'median s':>10} {'95 % interval':>22} {'first s':>9} {'GFLOP':>9} {'GFLOP/s':>8} {'of peak':>8} "
        f"{'peak GiB':>9}",
    ]
    for row in report["rows"]:
        seconds = row["seconds"]
        interval = f"{seconds['low']:.4f} to {seconds['high']:.4f}" if seconds["low"] is not None else "too few rounds"
        line = f"  {row['name']:60} {seconds['median']:10.4f} {interval:>22}"
        line += f" {row['first_seconds']:9.3f}" if row.get("first_seconds") is not None else f" {'':9}"
        if "flops" in row:
            of_peak = f"{row['of_peak']:.1%}" if row["of_peak"] is not None else ""
            line += f" {row['flops'] / 1e9:9.2f} {row['flops'] / seconds['median'] / 1e9:8.1f} {of_peak:>8}"
        else:
            line += f" {'':27}"
        if row.get("peak_bytes"):
            line += f" {row['peak_bytes'] / 2**30:9.2f}"
        lines.append(line.rstrip())
    return "\n".join(lines)
