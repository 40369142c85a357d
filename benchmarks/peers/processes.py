"""From the start of a process to its mp4, by stage: `kinema generate`, and a script that uses diffusers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kinema.bench.intervals import paired_ratio
from kinema.bench.report import Report, timing
from kinema.bench.rounds import interleaved
from kinema.errors import KinemaError

if TYPE_CHECKING:
    from kinema.pipeline import VideoPipeline

KINEMA, DIFFUSERS = "kinema", "diffusers"
OUTSIDE = "python's start and exit"
# fields of a request, and the options of `kinema generate` for them
OPTIONS = {
    "num_frames": "--num-frames",
    "height": "--height",
    "width": "--width",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "max_sequence_length": "--max-sequence-length",
    "seed": "--seed",
}


def measure(
    pipe: VideoPipeline, peers: Collection[str], request: dict[str, Any], load_words: list[str], rounds: int
) -> list[Report]:
    """A row for kinema, and one for diffusers if it is among `peers`, with the median seconds of each stage.

    load_words: options of `kinema generate` that say how the model is run. Raises KinemaError where a process fails.
    """
    folder, threads = str(pipe.folder.path), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        output = str(Path(scratch) / "clip.mp4")
        given = [word for name, option in OPTIONS.items() for word in (option, str(request[name]))]
        words = [request["prompt"], "-o", output, "-m", folder, *given, *load_words, "--json"]
        commands = {KINEMA: [sys.executable, "-m", "kinema", "generate", *words]}
        if DIFFUSERS in peers:
            script = Path(__file__).with_name("diffusers_process.py")
            asked = json.dumps({**request, "fps": pipe.defaults.fps})
            commands[DIFFUSERS] = [sys.executable, str(script), folder, asked, str(threads), output]
        stages: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        calls = {name: lambda name=name: stages[name].append(_stages(commands[name])) for name in commands}
        samples = interleaved(calls, rounds, warmup=1, shortest=0)
    rows = []
    for name, seconds in samples.items():
        row = timing(f"process, {name}", seconds)
        kept = stages[name][-rounds:]
        row["stages"] = {stage: statistics.median(round_[stage] for round_ in kept) for stage in kept[0]}
        if name != KINEMA:
            row["kinema_is_faster"] = paired_ratio(seconds, samples[KINEMA]).as_dict()
        rows.append(row)
    return rows


def _stages(command: list[str]) -> dict[str, float]:
    """Run a process; its seconds by stage, from the JSON that it prints."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    whole = time.perf_counter() - started
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise KinemaError(f"{' '.join(command[:4])} … ended with code {done.returncode}: {last}")
    said = json.loads(done.stdout[done.stdout.index("{") :])
    seconds: dict[str, float] = said.get("seconds", said)
    return {OUTSIDE: whole - sum(seconds.values()), **seconds}
