"""kinema bench memory: the predicted peak memory beside the measured one, each case in a process of its own.

Models of several sizes, clips, precisions and backends, with parts kept and freed, frames streamed and collected.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinema.bench.published_configs import UMT5_XXL, VAE_21, Published, transformer, unipc
from kinema.bench.report import Report
from kinema.cli.output import emit
from kinema.cli.parser import text
from kinema.errors import KinemaError, RequestError

LEAST, MOST = 1.00, 1.25
TIMED = "nothing: a process's peak memory from its start, beside what was predicted"

# 130 MB of weights: 4 blocks of width 512, a third of the published VAE's width
MIDDLE = Published(
    "WanPipeline",
    transformer(attention_head_dim=64, num_attention_heads=8, ffn_dim=2048, num_layers=4, text_dim=256),
    {**VAE_21, "base_dim": 32},
    unipc(3.0),
    {**UMT5_XXL, "d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 512, "vocab_size": 512},
)
CHILD = """
import json, sys, tempfile
from pathlib import Path
from kinema.memory.predict import predict
from kinema.pipeline import VideoPipeline
from kinema.request import GenerationRequest
model, options, call, streamed = sys.argv[1], *map(json.loads, sys.argv[2:5])
pipe = VideoPipeline.from_pretrained(model, device="cpu", **options)
request = pipe.complete(GenerationRequest(**call), streamed=streamed)
prediction = predict(pipe.model, request, pipe.ops.plan, pipe.options, streamed=streamed)
state = pipe.prepare(request, streamed=streamed)
pipe.run(state)
if streamed:
    with tempfile.TemporaryDirectory() as folder:
        pipe.write(state, Path(folder) / "out.mp4")
else:
    pipe.finish(state)
print(json.dumps([prediction.peak, prediction.largest_stage, state.measured().peak_bytes]))
"""


@dataclass(frozen=True)
class Case:
    """model: "sample", "middle" or a folder. size: frames, height, width."""

    model: str
    size: tuple[int, int, int]
    precision: str = "fp32"
    backend: str = "auto"
    keep_loaded: bool = True
    streamed: bool = False

    @property
    def name(self) -> str:
        frames, height, width = self.size
        kept = "" if self.keep_loaded else ", parts let go"
        streamed = ", streamed" if self.streamed else ""
        return f"{self.model}, {frames} x {height}x{width}, {self.precision}, {self.backend}{kept}{streamed}"


def cases() -> Iterator[Case]:
    """All cases."""
    small, middle = Case("sample", (17, 64, 64)), Case("middle", (25, 256, 256))
    for precision in ("fp32", "bf16", "int8", "fp8"):
        yield replace(small, precision=precision)
        yield replace(middle, precision=precision)
    yield replace(small, backend="reference")
    yield replace(middle, backend="reference")
    yield replace(small, size=(1, 64, 64))
    yield replace(small, size=(81, 128, 128))
    yield replace(middle, size=(1, 512, 512))
    yield replace(middle, keep_loaded=False)
    yield replace(middle, precision="fp8", keep_loaded=False)
    yield replace(middle, precision="int8", backend="reference", keep_loaded=False)
    yield replace(small, streamed=True, size=(81, 128, 128))
    yield replace(middle, streamed=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", type=text, default="", metavar="TEXT", help="only cases with this in their name")
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="processes per case; the smallest peak counts (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if a prediction is outside its bounds."""
    from kinema.bench.random_model import write_random_model
    from kinema.bench.report import check_report, provenance, write_report
    from kinema.ops import plan_ops, target_for
    from kinema.request.progress import steps_bar

    if arguments.rounds < 1:
        raise RequestError(f"--rounds {arguments.rounds}: wanted at least 1")
    if arguments.json is not None:
        check_report(arguments.json)
    wanted = [case for case in cases() if arguments.case in case.name]
    if not wanted:
        raise RequestError(f"no case has {arguments.case!r} in its name: {'; '.join(case.name for case in cases())}")
    rows = []
    with tempfile.TemporaryDirectory() as temporary, steps_bar(len(wanted), unit="case") as advance:
        middle = Path(temporary) / "middle"
        if any(case.model == "middle" for case in wanted):
            write_random_model(middle, MIDDLE)
        for case in wanted:
            rows.append(_measured(case, str(middle) if case.model == "middle" else case.model, arguments.rounds))
            advance()
    head = provenance("memory", arguments.words, plan_ops(target_for("cpu"), "auto"), timed=TIMED, backend="auto")
    report: Report = {**head, "rows": rows, "outside": sum(not row["fits"] for row in rows)}
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(rows))
    return 1 if report["outside"] else 0


def _measured(case: Case, model: str, rounds: int) -> dict[str, Any]:
    frames, height, width = case.size
    options = {"precision": case.precision, "backend": case.backend, "keep_loaded": case.keep_loaded}
    call = {"prompt": "a red circle", "num_frames": frames, "height": height, "width": width, "seed": 0}
    call |= {"num_inference_steps": 2, "guidance_scale": 3.0}
    words = [sys.executable, "-c", CHILD, model, *map(json.dumps, (options, call, case.streamed))]
    found = []
    for _ in range(rounds):  # how much freed memory malloc keeps differs from run to run
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KinemaError(f"{case.name}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    predicted, stage, _ = found[0]
    measured = min(peak for _, _, peak in found)
    ratio = predicted / measured
    row = {"name": case.name, "predicted": predicted, "stage": stage, "measured": measured, "ratio": ratio}
    return {**row, "fits": LEAST <= ratio <= MOST}


def _table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:{width}}  predicted {row['predicted'] / 2**20:6.0f} MiB ({row['stage']:7})  "
        f"measured {row['measured'] / 2**20:6.0f} MiB  {row['ratio']:.2f}{'' if row['fits'] else '  outside'}"
        for row in rows
    ]
    inside = sum(row["fits"] for row in rows)
    return "\n".join([*lines, f"{inside} of {len(rows)} between {LEAST:.2f} and {MOST:.2f} times the measured peak"])
