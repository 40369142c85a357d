"""kinema bench adherence: does the sample model do what its prompts say? Judged by exact detectors."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, open_to_measure
from kinema.cli.output import emit
from kinema.errors import RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report
    from kinema.media.video import Video
    from kinema.pipeline import VideoPipeline
    from kinema.sample.adherence import Verdict
    from kinema.sample.world import Scene, Split

ATTRIBUTES = ("colour", "subject", "motion", "speed", "background")
JUDGED_FRAMES = 16  # of a continued clip
SPLITS: tuple[Split, ...] = ("train", "held_out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--prompts", type=int, default=512, metavar="N", help="prompts of each split (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="clips at a time (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, help="how strongly to follow the prompt")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="continue each clip to N frames or a little more, and judge its last 16"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides prompts and noise (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.request.progress import steps_bar

    if arguments.prompts < 1 or arguments.batch < 1:
        raise RequestError(f"{arguments.prompts} prompts, {arguments.batch} at a time: wanted at least 1 of each")
    if arguments.json is not None:
        check_report(arguments.json)
    pipe = open_to_measure(arguments)
    report: Report = {
        **provenance("adherence", arguments.words, pipe.ops.plan),
        **model_of(pipe.folder.path),
        "prompts": arguments.prompts,
        "frames": arguments.frames,
        "seed": arguments.seed,
        "splits": {},
    }
    options = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    with steps_bar(2 * arguments.prompts, unit="clip") as advance:
        for split in SPLITS:
            scenes, verdicts = [], []
            for start in range(0, arguments.prompts, arguments.batch):
                count = min(arguments.batch, arguments.prompts - start)
                made = generated(pipe, split, arguments.seed + start, count, options, arguments.frames)
                scenes += made[0]
                verdicts += made[1]
                advance(count)
            report["splits"][split] = shares(scenes, verdicts)
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def generated(
    pipe: VideoPipeline, split: Split, seed: int, count: int, options: dict[str, Any], frames: int | None = None
) -> tuple[list[Scene], list[Verdict], list[Video]]:
    """Generate `count` random scenes of a split from their captions, and judge each clip.

    frames: continue every clip until it has as many, and judge (and return) its last `JUDGED_FRAMES`.
    """
    from kinema.media.video import Video
    from kinema.request.generation import GenerationRequest
    from kinema.sample.adherence import judge
    from kinema.sample.captions import caption
    from kinema.sample.training import generator_for
    from kinema.sample.world import sample_scene
    from kinema.stream.continuation import extend

    generator = generator_for(seed, 5, {"train": 0, "held_out": 1}[split])
    scenes = [sample_scene(generator, split) for _ in range(count)]
    captions = [caption(scene, generator) for scene in scenes]
    given = {name: value for name, value in options.items() if value is not None}
    state = pipe.prepare(GenerationRequest(captions, seed=seed, **given))
    pipe.run(state)
    if frames is not None:
        extend(pipe, state, 1 + math.ceil((frames - 1) / pipe.model.configs["vae"].scale_factor_temporal))
    videos = pipe.finish(state).videos
    if frames is not None:
        videos = [Video(video.frames[-JUDGED_FRAMES:], video.fps) for video in videos]
    verdicts = [judge(video.frames, scene.describe()) for scene, video in zip(scenes, videos, strict=True)]
    return scenes, verdicts, videos


def shares(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, dict[str, float | int]]:
    """Per attribute, and separately for shapes and digits where they differ: how many were asked for, and are right."""
    from kinema.sample.adherence import wilson_interval
    from kinema.sample.digits import DIGITS

    rows = {name: [getattr(v, f"{name}_ok") for v in verdicts] for name in ATTRIBUTES}
    rows["all three"] = [v.all_ok for v in verdicts]
    for kind, wanted in (("shapes", False), ("digits", True)):
        members = [v for s, v in zip(scenes, verdicts, strict=True) if (s.subjects[0].name in DIGITS) is wanted]
        rows[f"subject, {kind}"] = [v.subject_ok for v in members]
        rows[f"all three, {kind}"] = [v.all_ok for v in members]
    result: dict[str, dict[str, float | int]] = {}
    for name, oks in rows.items():
        asked = [ok for ok in oks if ok is not None]
        if asked:
            low, high = wilson_interval(sum(asked), len(asked))
            result[name] = {"right": sum(asked), "of": len(asked), "low": low, "high": high}
    return result


def _table(report: Report) -> str:
    lines = [f"{'':20} {'trained combinations':>30} {'held-out combinations':>30}"]
    train, held_out = report["splits"]["train"], report["splits"]["held_out"]
    for name in train:
        cells = [_cell(split[name]) if name in split else "" for split in (train, held_out)]
        lines.append(f"{name:20} {cells[0]:>30} {cells[1]:>30}")
    return "\n".join(lines)


def _cell(share: dict[str, float | int]) -> str:
    percent = 100 * share["right"] / share["of"]
    return f"{percent:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f}) of {share['of']}"
