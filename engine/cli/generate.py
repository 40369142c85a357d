"""kinema generate: a prompt in, a file out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.cli.imports import without_collections
from kinema.cli.load import (
    MODEL_HELP,
    add_load_arguments,
    add_scheduler_arguments,
    choose_scheduler,
    load_options,
)
from kinema.cli.output import emit, emit_json
from kinema.cli.parser import text
from kinema.cli.request import add_request_arguments, request_from

if TYPE_CHECKING:
    from kinema.estimate.duration import Estimate
    from kinema.memory.predict import Prediction
    from kinema.request.stats import CacheUse, Stats

COLLECTED = ("gif", "webp")  # formats that are written only when all frames are there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", type=text, help="what the video shows")
    parser.add_argument(
        "-o",
        "--output",
        default="out.mp4",
        metavar="PATH",
        help="the suffix gives the format: .mp4, .gif, .webp, .npy, .png and .jpg (one frame), name/ for a folder of "
        "PNG files (%(default)s)",
    )
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--fps", type=float, help="frames per second of the file (default: the model's)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--estimate", action="store_true", help="say how long it will take and how much memory, and make nothing"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar, not even on a terminal")
    add_request_arguments(parser)
    add_scheduler_arguments(parser)
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.media.staging import check_writable

    started = time.perf_counter()
    several = (arguments.num_videos_per_prompt or 1) > 1
    first = _output_path(arguments.output, 0 if several else None)
    streamed = check_writable(first, fps=arguments.fps).format.name not in COLLECTED  # before torch is even imported

    with without_collections():
        from kinema.buffers.machine import obtainable_bytes
        from kinema.memory.predict import check_fits, predict
        from kinema.pipeline import VideoPipeline
        from kinema.request.progress import say, steps_bar, waiting

        request = request_from(arguments)
        pipe = VideoPipeline.from_pretrained(arguments.model, **load_options(arguments))
    choose_scheduler(pipe, arguments)
    request = pipe.complete(request, streamed=True)
    num_frames, height, width = request.clip
    fps = pipe.defaults.fps if arguments.fps is None else arguments.fps
    pipe.geometry.latent_size(*request.clip)
    size: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width, "fps": fps}
    check_writable(first, **size)
    prediction = predict(pipe.model, request, pipe.ops.plan, pipe.options, streamed=streamed)
    expected = pipe.expected_time(request)
    estimate = expected.estimate()
    if arguments.estimate:
        emit_json(_as_json(estimate, prediction)) if arguments.json else emit(
            "\n".join(_expected(estimate, prediction))
        )
        return 0
    # before the paths of what may be a million videos are looked at
    available = obtainable_bytes(pipe.ops.device)
    check_fits(pipe.model, request, pipe.ops.plan, pipe.options, available, streamed=streamed)
    paths = [_output_path(arguments.output, i if several else None) for i in range(request.samples)]
    for path in paths[1:]:
        check_writable(path, **size)
    show = False if arguments.no_progress or arguments.json else None
    say(_expected(estimate, prediction)[-1], show)
    opened = time.perf_counter()

    with waiting("loading the model and reading the prompt", show):
        state = pipe.prepare(request, streamed=streamed)
    with steps_bar(state.num_steps, show, title="denoise") as advance:
        pipe.run(state, lambda step, timestep: advance())
    with steps_bar(num_frames, show, unit="frame", title="decode") as advance:
        stats = pipe.write(state, paths, fps=fps, on_frames=advance)
    expected.remember(stats)
    stats.seconds = {"start": opened - started, **stats.seconds}

    wall = time.perf_counter() - started
    if arguments.json:
        foreseen = _as_json(estimate, prediction)
        emit_json({"paths": paths, **size, **stats.summary(), "wall_seconds": wall, **foreseen})
    else:
        clip = f"{num_frames} frames of {width}x{height} at {fps:g} fps, {num_frames / fps:.2f} s"
        emit("\n".join([*(f"{path}: {clip}, {_size(Path(path))}" for path in paths), *_cost(stats, wall)]))
    return 0


def _output_path(output: str, number: int | None) -> str:
    """out.mp4, or of several videos out-0.mp4, out-1.mp4, … A final '/', which means a folder, stays."""
    if number is None:
        return output
    path, end = Path(output), "/" if output.endswith("/") else ""
    stem, suffix = (path.name, "") if end else (path.stem, path.suffix)
    return f"{path.with_name(f'{stem}-{number}{suffix}')}{end}"


def _size(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else (path,)
    return f"{sum(file.stat().st_size for file in files) / 1000:,.1f} kB"


def _as_json(estimate: Estimate, prediction: Prediction) -> dict[str, Any]:
    return {
        "estimated_seconds": estimate.total,
        "estimated_stage_seconds": estimate.seconds,
        "earlier_runs": estimate.runs,
        "predicted_bytes": prediction.stages,
        "predicted_peak_bytes": prediction.peak,
    }


def _expected(estimate: Estimate, prediction: Prediction) -> list[str]:
    """A line per stage, and what all of it will take."""
    from kinema.memory.predict import gib

    lines = [
        f"  {stage:16} {f'{seconds:9.2f} s' if (seconds := estimate.seconds.get(stage)) else '':11} "
        f"{gib(prediction.stages[stage]) if stage in prediction.stages else '':>10}".rstrip()
        for stage in dict.fromkeys((*estimate.seconds, *prediction.stages))
    ]
    return [*lines, f"this will take {estimate}, and {gib(prediction.peak)} of memory at most"]


def _saved(use: CacheUse, seconds: float) -> str:
    kinds = ", ".join(f"{use.steps.count(kind)} {kind}" for kind in ("guided", "conditional", "held"))
    return (
        f"{kinds}; {use.row_forwards} of {use.exact} row-forwards, about "
        f"{use.summary(seconds)['seconds_saved']:.2g} s saved, {use.nbytes / 1e6:.2g} MB held"
    )


def _cost(stats: Stats, wall: float) -> Sequence[str]:
    """A line per stage that did something, and the total."""
    each = stats.seconds.get("denoise", 0.0) / max(stats.steps, 1)
    notes = {"denoise": f"{stats.steps} steps, {each:.3g} s each"}
    lines = [
        f"  {name:16} {seconds:9.2f} s  {notes.get(name, '')}".rstrip()
        for name, seconds in stats.seconds.items()
        if seconds >= 0.0005
    ]
    if stats.cache is not None:
        lines.append(f"  {'cache':16} {_saved(stats.cache, stats.seconds.get('denoise', 0.0))}")
    peak = f"peak memory {stats.peak_bytes / 2**30:.2f} GiB" if stats.peak_bytes else ""
    facts = ", ".join(fact for fact in (peak, f"seed {stats.seed}") if fact)
    return [*lines, f"  {'total':16} {wall:9.2f} s  {facts}"]
