"""kinema inspect: a model's parts, parameters and the predicted peak memory of a clip."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, load_options
from kinema.cli.output import emit, emit_json

if TYPE_CHECKING:
    from kinema.estimate.duration import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    clip = parser.add_argument_group("the clip (default: what the model was made for)")
    clip.add_argument("--height", type=int, metavar="PIXELS", help="height of a frame")
    clip.add_argument("--width", type=int, metavar="PIXELS", help="width of a frame")
    clip.add_argument("--num-frames", type=int, metavar="N", help="length in frames; 1 makes an image")
    clip.add_argument("--num-videos", type=int, default=1, metavar="N", help="videos at once (%(default)s)")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.buffers.machine import available_bytes, obtainable_bytes
    from kinema.memory.predict import check_fits, predict
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest

    pipe = VideoPipeline.from_pretrained(arguments.model, **load_options(arguments))
    size = {name: getattr(arguments, name) for name in ("height", "width", "num_frames")}
    request = pipe.complete(GenerationRequest(prompt="", num_videos_per_prompt=arguments.num_videos, **size))
    num_frames, height, width = request.clip
    latent_size = pipe.geometry.latent_size(*request.clip)
    precision = pipe.ops.plan.target.precision
    prediction = predict(pipe.model, request, pipe.ops.plan, pipe.options)
    estimate = pipe.expected_time(request).estimate()
    parameters = {
        name: sum(math.prod(shape) for shape in tensors.values()) for name, _, tensors in pipe.model.tensors()
    }
    report = {
        "model": str(pipe.folder.path),
        "pipeline": pipe.folder.pipeline_class,
        "modes": sorted(pipe.model.modes),
        "precision": precision.name,
        "parts": {
            name: {"class": pipe.folder.component(name).class_name, "parameters": parameters.get(name)}
            for name in pipe.folder.components
        },
        "weight_bytes": prediction.parts,
        "clip": {"num_frames": num_frames, "height": height, "width": width, "videos": request.samples},
        "latents": list(latent_size),
        "steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "tokens": pipe.geometry.tokens(latent_size),
        "predicted_bytes": prediction.stages,
        "predicted_peak_bytes": prediction.peak,
        "estimated_seconds": estimate.total,
        "estimated_stage_seconds": estimate.seconds,
        "earlier_runs": estimate.runs,
        "available_bytes": available_bytes(pipe.ops.device),
    }
    if arguments.json:
        emit_json(report)
    else:
        emit(_text(report, estimate))
    if arguments.num_videos > 1 or any(asked is not None for asked in size.values()):
        check_fits(pipe.model, request, pipe.ops.plan, pipe.options, obtainable_bytes(pipe.ops.device))
    return 0


def _text(report: dict[str, Any], estimate: Estimate) -> str:
    from kinema.memory.predict import gib

    lines = [f"{report['model']}: {report['pipeline']}, {', '.join(report['modes'])}, weights in {report['precision']}"]
    for name, part in report["parts"].items():
        count = f"{part['parameters'] / 1e6:12,.2f} M parameters" if part["parameters"] else ""
        lines.append(f"  {name:16} {part['class']:32} {count}".rstrip())
    clip = report["clip"]
    size = f"{clip['num_frames']} frames of {clip['width']}x{clip['height']}"
    many = f"{clip['videos']} videos of " if clip["videos"] > 1 else ""
    latents = "x".join(str(n) for n in report["latents"])
    lines += ["", f"{many}{size}: latents {latents}, {report['tokens']} tokens"]
    lines += [f"  {stage:16} {gib(count):>10}" for stage, count in report["predicted_bytes"].items()]
    peak, available = gib(report["predicted_peak_bytes"]), gib(report["available_bytes"])
    lines.append(f"  {'peak':16} {peak:>10} predicted, {available} available")
    lines.append(f"  {'time':16} {estimate}, of {report['steps']} steps with guidance {report['guidance_scale']:g}")
    return "\n".join(lines)
