"""kinema bench fidelity: what every lossy option gains, what it costs, and what fewer steps would cost instead.

The exact run is fp32 with the same seed. An option that is faster is shown beside the exact run with as many steps as
fit in the option's time: if it cannot beat that, it is of no use. A stochastic scheduler runs without its noise: with
another number of steps it would draw other noise, and the distance would only show that.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kinema.bench.model import add_size_arguments, open_pipeline
from kinema.cli.load import MODEL_HELP, add_load_arguments
from kinema.cli.output import emit
from kinema.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from kinema.bench.report import Report
    from kinema.pipeline import VideoPipeline

TIMED = "a whole generation of one prompt in this process, loaded and warm, decoded and not written"
EXACT = "exact"
# the distances that a row is judged by: 1 where more is nearer, -1 where less is
NEARER = {"psnr": 1, "ssim": 1, "last_step_error": -1, "adherence": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    add_size_arguments(parser)
    parser.add_argument("--option", action="append", metavar="NAME", help="only this; may be given several times")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the exact run (left out: the model's)")
    parser.add_argument("--prompts", type=int, default=4, metavar="N", help="videos to compare (%(default)s)")
    parser.add_argument(
        "--judged", type=int, default=64, metavar="N", help="clips whose adherence is judged; 0: none (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


@dataclass
class Setting:
    """One row: a pipeline, and what it is asked for."""

    name: str
    kind: str
    pipe: VideoPipeline
    request: dict[str, Any]


@dataclass
class Track:
    """What a setting gave: latents after each step, and frames uint8 [B, T, H, W, 3]."""

    latents: list[torch.Tensor]
    frames: np.ndarray


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.lossy import OPTIONS
    from kinema.bench.model import request_of
    from kinema.bench.model_parts import sizes_for
    from kinema.bench.report import check_report, model_of, provenance, write_report
    from kinema.bench.rounds import say_if_few

    names = arguments.option or list(OPTIONS)
    unknown = [name for name in names if name not in OPTIONS]
    if unknown:
        raise RequestError(f"no lossy option {unknown[0]!r}: wanted some of {', '.join(OPTIONS)}")
    if arguments.rounds < 1 or arguments.prompts < 1 or arguments.judged < 0:
        raise RequestError("wanted at least one round, one prompt, and 0 or more clips to judge")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    exactly = {"precision": "fp32", "quantize_attention": None}
    pipe = _deterministic(open_pipeline(arguments, **exactly))
    steps = arguments.steps or pipe.defaults.num_inference_steps
    asked = request_of(pipe, sizes_for(pipe, arguments.tokens, arguments.text_tokens), steps)
    exact = Setting(EXACT, EXACT, pipe, asked)
    settings, refused = [exact], []
    for name in names:
        option = OPTIONS[name]
        try:
            changed = _deterministic(open_pipeline(arguments, **{**exactly, **option.load}))
        except UnsupportedError as error:
            refused.append({"name": name, "kind": option.kind, "failed": str(error)})
            continue
        settings.append(Setting(name, option.kind, changed, {**asked, **option.request}))
    rows = _timed(settings, arguments.rounds)
    fewer = [
        Setting(f"{EXACT}, {count} steps", "fewer steps", pipe, {**asked, "num_inference_steps": count})
        for count in equal_time_steps(rows, steps, denoising_share(exact))
    ]
    if fewer:
        rows |= {name: row for name, row in _timed([exact, *fewer], arguments.rounds).items() if name != EXACT}
    truth = track(exact, arguments.prompts)
    for setting in [*settings, *fewer]:
        row = rows[setting.name]
        row |= {"kind": setting.kind, **distance(track(setting, arguments.prompts), truth)}
        if arguments.judged:
            row |= adherence(setting, arguments.judged)
    mark_dominated(list(rows.values()))
    report = {
        **provenance("fidelity", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(pipe.folder.path),
        "steps": steps,
        "prompts": arguments.prompts,
        "judged": arguments.judged,
        "rows": [*rows.values(), *refused],
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def _deterministic(pipe: VideoPipeline) -> VideoPipeline:
    pipe.scheduler = pipe.scheduler.core.without_noise()
    return pipe


def _timed(settings: Sequence[Setting], rounds: int) -> dict[str, Report]:
    """Interleaved with the exact run, which is the first."""
    from kinema.bench.intervals import paired_ratio
    from kinema.bench.report import timing
    from kinema.bench.rounds import interleaved

    calls = {s.name: (lambda s=s: generate(s, 1)) for s in settings}
    samples = interleaved(calls, rounds, warmup=1, shortest=0)
    base = samples[settings[0].name]
    return {
        name: {**timing(name, seconds), "than_exact": paired_ratio(base, seconds).as_dict()}
        for name, seconds in samples.items()
    }


def denoising_share(exact: Setting) -> float:
    """The share of a generation's time that depends on the number of steps: not prompts and decoding."""
    from kinema.bench.generate import measure
    from kinema.request.generation import GenerationRequest

    stats, _ = measure(exact.pipe, exact.pipe.complete(GenerationRequest(**exact.request)))
    return stats.seconds["denoise"] / stats.total_seconds


def equal_time_steps(rows: dict[str, Report], steps: int, share: float) -> list[int]:
    """Numbers of steps that the exact run does in the time of each option; none for one that is not faster."""
    speeds = [row["than_exact"]["median"] for name, row in rows.items() if name != EXACT]
    counts = {round(steps * (1 - (1 - 1 / speed) / share)) for speed in speeds}
    return sorted({max(1, count) for count in counts if count < steps}, reverse=True)


def generate(setting: Setting, prompts: int, latents: list[torch.Tensor] | None = None) -> np.ndarray:
    """Frames of the first prompts, [B, T, H, W, 3]; the latents after each step are appended to `latents`."""
    import numpy as np

    from kinema.bench.contact_sheet import PROMPTS
    from kinema.media.postprocess import to_uint8
    from kinema.request.generation import GenerationRequest

    texts = [PROMPTS[i % len(PROMPTS)] for i in range(prompts)]
    state = setting.pipe.prepare(GenerationRequest(**{**setting.request, "prompt": texts}))
    keep = None if latents is None else lambda step, timestep: latents.append(state.latents.double().cpu())
    setting.pipe.run(state, keep)
    return np.concatenate([to_uint8(chunk) for chunk in setting.pipe.decode_chunks(state)], axis=1)


def track(setting: Setting, prompts: int) -> Track:
    latents: list[torch.Tensor] = []
    return Track(frames=generate(setting, prompts, latents), latents=latents)


def distance(found: Track, exact: Track) -> Report:
    """PSNR and SSIM of the frames; the relative error of the latents after each step, where the steps are the same."""
    from kinema.bench.image_distance import psnr, ssim

    report: Report = {"psnr": psnr(found.frames, exact.frames), "ssim": ssim(found.frames, exact.frames)}
    if len(found.latents) == len(exact.latents):
        pairs = zip(found.latents, exact.latents, strict=True)
        report["step_errors"] = [float((a - b).norm() / b.norm()) for a, b in pairs]
        report["last_step_error"] = report["step_errors"][-1]
    return report


def adherence(setting: Setting, clips: int) -> Report:
    """The share of clips whose colour, subject and motion are what the prompt says, with its interval."""
    from kinema.bench.adherence import generated
    from kinema.sample.adherence import wilson_interval

    given = {name: value for name, value in setting.request.items() if name not in ("prompt", "seed")}
    right = 0
    for start in range(0, clips, 16):
        _, verdicts, _ = generated(setting.pipe, "train", start, min(16, clips - start), given)
        right += sum(verdict.all_ok for verdict in verdicts)
    low, high = wilson_interval(right, clips)
    return {"adherence": right / clips, "adherence_interval": [low, high]}


def mark_dominated(rows: Sequence[Report]) -> None:
    """Note in each row another that is faster and no farther from the exact run, by every distance that both have.

    Noise does not dominate: faster means by the whole 95 % intervals.
    """
    for row in rows:
        for other in rows:
            if other is not row and row["name"] != EXACT and _beats(other, row):
                row["dominated"] = other["name"]
                break


def _beats(one: Report, other: Report) -> bool:
    a, b = one["than_exact"], other["than_exact"]
    clearly = None not in (a["low"], b["high"]) and a["low"] > b["high"]
    if one["name"] == EXACT:  # the exact run is as near as can be: a row that saves no time gains nothing
        return b["high"] is not None and b["high"] <= 1.0
    both = [name for name in NEARER if name in one and name in other]
    return bool(clearly and all(NEARER[name] * (one[name] - other[name]) >= 0 for name in both))


def _table(report: Report) -> str:
    from kinema.bench.intervals import Estimate, said

    judged = f", {report['judged']} clips judged" if report["judged"] else ""
    lines = [
        f"{report['model']}: {report['steps']} steps, {report['prompts']} videos compared{judged}, "
        f"on {report['target']['device']}",
        f"  {'':20} {'seconds':>9}  {'times faster':27} {'PSNR dB':>8} {'SSIM':>7} {'last step':>10} "
        f"{'all three right':>24}",
    ]
    for row in report["rows"]:
        if "seconds" not in row:
            lines.append(f"  {row['name']:20} {row['failed']}")
            continue
        step = f"{row['last_step_error']:.1e}" if "last_step_error" in row else ""
        right = ""
        if "adherence" in row:
            low, high = row["adherence_interval"]
            right = f"{row['adherence']:.1%} ({low:.1%} to {high:.1%})"
        line = f"  {row['name']:20} {row['seconds']['median']:9.3f}  {said(Estimate(**row['than_exact'])):27} "
        line += f"{row['psnr']:8.2f} {row['ssim']:7.4f} {step:>10} {right:>24}"
        lines.append(line + (f"  dominated by {row['dominated']}" if "dominated" in row else ""))
    return "\n".join(lines)
