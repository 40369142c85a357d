"""kinema bench steps: more steps, better video? Adherence, and the distance to real clips, over the number of steps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, open_to_measure
from kinema.cli.output import emit
from kinema.errors import RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report
    from kinema.pipeline import VideoPipeline

STEPS = (1, 2, 4, 8, 16, 32, 50)
BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--prompts", type=int, default=256, metavar="N", help="prompts of each point (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides prompts and noise (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves into this picture (needs matplotlib)")
    parser.add_argument("--of", metavar="FILE", help="draw or print this report instead of measuring")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.pyplot import load_pyplot
    from kinema.bench.report import check_report, write_report
    from kinema.media.staging import check_writable

    if arguments.plot is not None:
        load_pyplot()
        check_writable(arguments.plot, num_frames=1)
    if arguments.of is not None:
        report = json.loads(Path(arguments.of).read_text(encoding="utf-8"))
    else:
        if arguments.json is not None:
            check_report(arguments.json)
        report = _measure(arguments)
        if arguments.json is not None:
            write_report(arguments.json, report)
    if arguments.plot is not None:
        plot(report, arguments.plot)
    emit(_table(report))
    return 0


def _measure(arguments: argparse.Namespace) -> Report:
    import torch

    from kinema.bench.report import model_of, provenance
    from kinema.request.progress import steps_bar
    from kinema.sample.distance import FEATURES, distance_to_real, features
    from kinema.sample.source import World

    if arguments.prompts <= FEATURES:
        raise RequestError(f"{arguments.prompts} prompts: wanted more than {FEATURES}, the features of the distance")
    pipe = open_to_measure(arguments)
    world = World(arguments.seed + 1, pipe.defaults.height)

    def real(first: int) -> torch.Tensor:
        numbers = range(first, first + arguments.prompts)
        chunks = [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]
        return torch.cat([features(world.video(chunk, pipe.defaults.num_frames)) for chunk in chunks])

    one, other = real(0), real(arguments.prompts)
    points = []
    with steps_bar(len(STEPS) * arguments.prompts, unit="clip") as advance:
        for steps in STEPS:
            oks, seen = [], []
            for start in range(0, arguments.prompts, BATCH):
                count = min(BATCH, arguments.prompts - start)
                verdicts, generated = _generated(pipe, arguments.seed + start, count, steps)
                oks += [v.all_ok for v in verdicts]
                seen.append(features(generated))
                advance(count)
            points.append(
                {"steps": steps, "right": sum(oks), "of": len(oks), "distance": distance_to_real(torch.cat(seen), one)}
            )
    return {
        **provenance("steps", arguments.words, pipe.ops.plan),
        **model_of(pipe.folder.path),
        "points": points,
        # the distance between two sets of real clips: no model can be nearer
        "floor": distance_to_real(other, one),
    }


def _generated(pipe: VideoPipeline, seed: int, count: int, steps: int) -> tuple[list[Any], Any]:
    """Verdicts, and the clips [B, 3, T, H, W] in [−1, 1]."""
    import torch

    from kinema.bench.adherence import generated

    _, verdicts, videos = generated(pipe, "train", seed, count, {"num_inference_steps": steps})
    frames = torch.stack([torch.from_numpy(video.frames) for video in videos])
    return verdicts, frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _table(report: Report) -> str:
    from kinema.sample.adherence import wilson_interval

    lines = [f"{'steps':>6} {'all three':>28} {'distance to real clips':>24}"]
    for point in report["points"]:
        low, high = wilson_interval(point["right"], point["of"])
        share = f"{100 * point['right'] / point['of']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"{point['steps']:>6} {share:>28} {point['distance']:>24.4f}")
    lines.append(f"{'':>6} {'two sets of real clips':>28} {report['floor']:>24.4f}")
    return "\n".join(lines)


def plot(report: Report, path: str) -> None:
    """Both curves over the steps, with the intervals of the first and the floor of the second."""
    import numpy as np

    from kinema.bench.pyplot import load_pyplot
    from kinema.media.video import Video
    from kinema.sample.adherence import wilson_interval

    pyplot = load_pyplot()
    points = report["points"]
    steps = [p["steps"] for p in points]
    shares = [100 * p["right"] / p["of"] for p in points]
    bounds = [wilson_interval(p["right"], p["of"]) for p in points]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), dpi=120)
    left.plot(steps, shares, marker="o", color="tab:blue")
    left.fill_between(
        steps, [100 * low for low, _ in bounds], [100 * high for _, high in bounds], alpha=0.2, color="tab:blue"
    )
    left.set(xscale="log", xlabel="steps", ylabel="subject, colour and motion right (%)", ylim=(0, 100))
    right.plot(steps, [p["distance"] for p in points], marker="o", color="tab:orange")
    right.axhline(report["floor"], linestyle=":", color="grey")
    right.set(xscale="log", yscale="log", xlabel="steps", ylabel="distance to real clips")
    for axes in (left, right):
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    pyplot.close(figure)
    Video(picture[None].copy()).save(path)
