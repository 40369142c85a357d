"""kinema inspect: a model's parts, parameters and the predicted peak memory of a clip."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from kinema.commands.load import add_load_arguments, load_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a diffusers-format folder, or 'sample'")
    parser.add_argument("--height", type=int, help="pixels")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--num-frames", type=int, help="frames")
    add_load_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from kinema.memory import available_bytes, component_shapes, gib, predict
    from kinema.pipeline import VideoPipeline
    from kinema.request import GenerationRequest

    pipe = VideoPipeline.from_pretrained(arguments.model, **load_options(arguments))
    size = {name: getattr(arguments, name) for name in ("height", "width", "num_frames")}
    request = pipe.complete(GenerationRequest(prompt="", **size))
    latent_size = pipe.geometry.latent_size(*request.clip)
    precision = pipe.ops.plan.target.precision
    prediction = predict(pipe.folder, request, precision, pipe.options)
    parameters = {
        name: sum(math.prod(shape) for shape in shapes.values())
        for name, shapes in component_shapes(pipe.folder).items()
    }
    frames, height, width = request.clip
    report: dict[str, Any] = {
        "model": str(pipe.folder.path),
        "pipeline": pipe.folder.pipeline_class,
        "precision": precision.name,
        "parts": {
            name: {"class": pipe.folder.component(name).class_name, "parameters": parameters.get(name)}
            for name in pipe.folder.components
        },
        "weight_bytes": prediction.parts,
        "clip": {"num_frames": frames, "height": height, "width": width},
        "latents": list(latent_size),
        "tokens": pipe.geometry.tokens(latent_size),
        "predicted_bytes": prediction.stages,
        "predicted_peak_bytes": prediction.peak,
        "available_bytes": available_bytes(pipe.ops.device),
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    print(f"{report['model']}: {report['pipeline']}, weights in {precision.name}")
    for name, part in report["parts"].items():
        count = f"{part['parameters'] / 1e6:12.2f} M parameters" if part["parameters"] else ""
        print(f"  {name:16} {part['class']:32} {count}")
    print(f"\n{frames} frames of {width}×{height}: latents {tuple(latent_size)}, {report['tokens']} tokens")
    for stage, count in prediction.stages.items():
        print(f"  {stage:16} {gib(count)}")
    print(f"  {'peak':16} {gib(prediction.peak)} predicted, {gib(report['available_bytes'])} available")
    return 0
