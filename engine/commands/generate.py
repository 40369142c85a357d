"""kinema generate: a prompt in, a file out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kinema.commands.load import add_load_arguments, load_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options have the names of `GenerationRequest`; what is left out is the model's default."""
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", default="out.mp4", help=".mp4, .gif, .webp, .png, .npy or a folder (%(default)s)"
    )
    parser.add_argument("-m", "--model", default="sample", help="a diffusers-format folder, or 'sample' (%(default)s)")
    parser.add_argument("--negative-prompt", help="what the video should not show")
    parser.add_argument("--height", type=int, help="pixels")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--num-frames", type=int, help="frames; 1 makes an image")
    parser.add_argument("--steps", type=int, dest="num_inference_steps", help="denoising steps: more is better")
    parser.add_argument("--guidance-scale", type=float, help="how strongly to follow the prompt; 1 turns guidance off")
    parser.add_argument("--guidance-scale-2", type=float, help="the same for the second expert of a two-expert model")
    parser.add_argument("--num-videos", type=int, dest="num_videos_per_prompt", help="videos of this prompt")
    parser.add_argument("--seed", type=int, help="same seed, same video; -1 or nothing draws one")
    parser.add_argument("--image", help="first frame (image-to-video models)")
    parser.add_argument("--last-image", help="last frame")
    parser.add_argument("--video", help="video to start from")
    parser.add_argument("--strength", type=float, help="how far --video is changed, 0 to 1")
    parser.add_argument("--max-sequence-length", type=int, help="prompt tokens")
    parser.add_argument("--tiled", action="store_true", help="decode in tiles: less memory, blended seams")
    parser.add_argument("--fps", type=float, help="frames per second of the file")
    add_load_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


_REQUEST_FIELDS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "num_videos_per_prompt",
    "image",
    "last_image",
    "video",
    "strength",
    "max_sequence_length",
)


def run(arguments: argparse.Namespace) -> int:
    from kinema.media.postprocess import to_uint8
    from kinema.media.staging import check_writable
    from kinema.media.writer import open_video
    from kinema.memory import peak_bytes
    from kinema.pipeline import VideoPipeline
    from kinema.progress import steps_bar
    from kinema.request import GenerationRequest
    from kinema.vae.tiling import Tiling

    started = time.perf_counter()
    given: dict[str, Any] = {name: getattr(arguments, name) for name in _REQUEST_FIELDS}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.seed is not None and arguments.seed != -1:
        given["seed"] = arguments.seed
    if arguments.tiled:
        given["tiling"] = Tiling()
    request = GenerationRequest(**given)
    pipe = VideoPipeline.from_pretrained(arguments.model, **load_options(arguments))
    request = pipe.complete(request)
    fps = arguments.fps or pipe.defaults.fps
    num_frames, height, width = request.clip
    paths = _output_paths(Path(arguments.output), request.samples)
    pipe.geometry.latent_size(*request.clip)
    for path in paths:
        check_writable(path, fps=fps, num_frames=num_frames, height=height, width=width)

    show = False if arguments.no_progress or arguments.json else None
    state = pipe.prepare(request)
    with steps_bar(state.num_steps, show) as advance:
        while not state.done:
            pipe.step([state])
            advance()
    with ExitStack() as files, state.stats.stage("decode and write"):
        writers = [files.enter_context(open_video(path, fps)) for path in paths]
        for chunk in pipe.decode_chunks(state):
            for writer, frames in zip(writers, to_uint8(chunk), strict=True):
                writer.write(frames)
    state.stats.steps, state.stats.peak_bytes = state.step_index, peak_bytes(pipe.ops.device)
    _report(arguments, paths, request.clip, fps, state.stats, time.perf_counter() - started)
    return 0


def _output_paths(path: Path, count: int) -> list[Path]:
    """out.mp4, or out-0.mp4, out-1.mp4, … for several videos."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(count)]


def _report(
    arguments: argparse.Namespace, paths: list[Path], clip: tuple[int, int, int], fps: float, stats: Any, wall: float
) -> None:
    num_frames, height, width = clip
    if arguments.json:
        size = {"num_frames": num_frames, "height": height, "width": width, "fps": fps}
        print(json.dumps({"paths": [str(p) for p in paths], **size, **stats.summary(), "wall_seconds": wall}))
        return
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stats.seconds.items())
    for path in paths:
        print(f"{path}: {num_frames} frames of {width}×{height}, {num_frames / fps:.2f} s at {fps:g} fps")
    seed = f", seed {stats.seed}" if stats.seed is not None else ""
    print(f"{stages}; {wall:.2f} s in all{seed}", file=sys.stdout)
