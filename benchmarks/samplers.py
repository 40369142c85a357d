"""kinema bench samplers: the same clips by several samplers, at few and many steps, judged by their prompts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, open_to_measure
from kinema.cli.output import emit
from kinema.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.bench.prompt_sets import Asked
    from kinema.bench.report import Report
    from kinema.pipeline import VideoPipeline
    from kinema.sample.adherence import Verdict
    from kinema.schedulers import SchedulerCore

OWN, STEPS, BATCH = "the model's own", (8, 12, 20), 16
LONGEST = 0.45  # of a step that adds noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument(
        "--steps", type=int, action="append", metavar="N", help=f"may be given several times (left out: {STEPS})"
    )
    parser.add_argument(
        "--sampler", action="append", metavar="NAME", help="only this beside the model's own; repeatable"
    )
    parser.add_argument("--prompts", type=int, default=192, metavar="N", help="clips of each row (%(default)s)")
    parser.add_argument(
        "--set", choices=("judge", "tune"), default="judge", help="which prompts: none is in both sets (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.prompt_sets import asked
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.request.progress import steps_bar

    if arguments.prompts < 1 or min(arguments.steps or STEPS) < 1:
        raise RequestError("wanted at least one prompt and one step")
    if arguments.json is not None:
        check_report(arguments.json)
    pipe = open_to_measure(arguments)
    samplers = samplers_of(pipe.scheduler.core)
    unknown = [name for name in arguments.sampler or () if name not in samplers]
    if unknown:
        raise RequestError(f"no sampler {unknown[0]!r} for this model: wanted some of {', '.join(samplers)}")
    chosen = {n: core for n, core in samplers.items() if n == OWN or n in (arguments.sampler or samplers)}
    clips, counts = asked(arguments.set, arguments.prompts), arguments.steps or STEPS
    rows: list[Report] = []
    with steps_bar(sum(counts) * len(chosen) * len(clips), unit="step") as advance:
        for steps in counts:
            own: list[bool] = []
            for name, core in chosen.items():
                pipe.scheduler = core
                verdicts = []
                for start in range(0, len(clips), BATCH):
                    verdicts += _judged(pipe, clips[start : start + BATCH], steps)
                    advance(steps * min(BATCH, len(clips) - start))
                own = own or [verdict.all_ok for verdict in verdicts]
                rows.append(
                    {"name": f"{name}, {steps} steps", "sampler": name, "steps": steps, **shares(verdicts, own)}
                )
    report = {
        **provenance("samplers", arguments.words, pipe.ops.plan),
        **model_of(pipe.folder.path),
        "prompts": len(clips),
        "set": arguments.set,
        "rows": rows,
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def samplers_of(own: SchedulerCore) -> dict[str, SchedulerCore]:
    """The model's own sampler, with noise in its shorter steps only and without any, and others by name."""
    from kinema.schedulers import NAMES, named, with_noise_max_step

    found = {OWN: own}
    if hasattr(own.config, "noise_max_step") and own.has_noise:
        found[f"noise in steps up to {LONGEST:g}"] = with_noise_max_step(own, LONGEST)
    if own.has_noise:
        found["no noise"] = own.without_noise()
    others = {name: NAMES[name] for name in ("euler", "unipc") if NAMES[name] != own.class_name}
    return found | {name: named(name, own) for name in others}


def _judged(pipe: VideoPipeline, clips: Sequence[Asked], steps: int) -> list[Verdict]:
    from kinema.request.generation import GenerationRequest
    from kinema.sample.adherence import judge

    prompts, seeds = [clip.prompt for clip in clips], [clip.seed for clip in clips]
    state = pipe.prepare(GenerationRequest(prompts, seed=seeds, num_inference_steps=steps))
    pipe.run(state)
    videos = pipe.finish(state).videos
    wanted = [clip.wanted for clip in clips if clip.wanted is not None]
    return [judge(video.frames, what) for what, video in zip(wanted, videos, strict=True)]


def shares(verdicts: Sequence[Verdict], own: Sequence[bool]) -> dict[str, Any]:
    """Of a row's clips, how many are right in what; and which verdicts differ from those on the model's own sampler."""
    from kinema.bench.paired import mcnemar
    from kinema.sample.adherence import wilson_interval

    right = [verdict.all_ok for verdict in verdicts]
    parts = {
        part: sum(getattr(v, f"{part}_ok") is not False for v in verdicts) for part in ("subject", "colour", "motion")
    }
    interval = list(wilson_interval(sum(right), len(right)))
    return {
        "right": sum(right),
        "of": len(right),
        "interval": interval,
        **parts,
        "changed": mcnemar(own, right).as_dict(),
    }


def _table(report: Report) -> str:
    wide = max(len(row["sampler"]) for row in report["rows"]) + 2
    lines = [
        f"{report['model']}: {report['prompts']} clips of the set {report['set']}; lost and won against {OWN} sampler",
        f"  {'steps':>5}  {'':{wide}} {'all three right':>28} {'subject':>8} {'colour':>7} {'motion':>7}  "
        "lost / won (p)",
    ]
    for row in report["rows"]:
        low, high = row["interval"]
        share = f"{row['right']} of {row['of']}, {row['right'] / row['of']:.0%} ({low:.0%} to {high:.0%})"
        line = f"  {row['steps']:>5}  {row['sampler']:{wide}} {share:>28} {row['subject']:>8} {row['colour']:>7} "
        line += f"{row['motion']:>7}"
        if row["sampler"] != OWN:
            line += f"  {row['changed']['lost']} / {row['changed']['won']} ({row['changed']['p']:.2g})"
        lines.append(line)
    return "\n".join(lines)
