"""Many requests of many shapes through one pipeline: what is recorded, what stays in memory, whether it is right."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from kinema.buffers.heap import return_freed_bytes
from kinema.buffers.machine import held_bytes
from kinema.cli.load import open_to_measure
from kinema.denoise import replay
from kinema.denoise.replay import Recordings, record_on_cpu, record_on_gpu
from kinema.errors import KinemaWarning, RequestError
from kinema.request.generation import GenerationRequest

if TYPE_CHECKING:
    from kinema.pipeline import VideoPipeline

STEPS = 3  # the first of a shape is eager, the second records, the third replays
SETTLED = 100  # requests after which memory may not grow
GROWTH = 0.05
COMPARED = 4  # shapes whose videos are compared with a fresh pipeline's

PROMPT = "a red circle moving left"
Clip = tuple[int, int, int]


def mixed(arguments: argparse.Namespace, advance: Callable[[], None]) -> dict[str, Any]:
    """Figures, `said` of them as text, and what was `wrong`."""
    pipe, made = open_to_measure(arguments), []
    real = record_on_gpu if pipe.ops.device.type == "cuda" else record_on_cpu

    def record(body: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor, int]:
        made.append(1)
        return real(body)

    pipe.recordings = Recordings(record)
    clips = list(islice(shapes(pipe), arguments.shapes))
    if len(clips) < arguments.shapes:
        raise RequestError(f"--shapes {arguments.shapes}: this model has {len(clips)} small enough to be recorded")
    order, held, settled = Random(0), [], min(SETTLED, arguments.requests // 2)
    turn: list[Clip] = []
    for number in range(arguments.requests):
        if not turn:
            turn = order.sample(clips, len(clips))
        _latents(pipe, turn.pop(), number)
        if number >= settled and number % 10 == 0:
            return_freed_bytes()
            held.append(held_bytes(pipe.ops.device))
        advance()
    bound = min(len(clips), replay.MAX_RECORDINGS)
    growth = held[-1] / held[0] - 1 if held else 0.0
    other = [clip for clip in clips[:: max(1, len(clips) // COMPARED)] if not _same(arguments, pipe, clip)]
    wrong = [
        *([f"{len(made)} recordings, wanted at most {bound}"] if len(made) > bound else []),
        *([f"memory grew by {growth:.1%}, wanted at most {GROWTH:.0%}"] if growth > GROWTH else []),
        *(f"the clip of {clip} is not a fresh pipeline's" for clip in other),
    ]
    said = [
        f"{arguments.requests} requests of {len(clips)} shapes: {len(made)} recordings, "
        f"memory {growth:+.1%} after the first {settled}",
        *(f"WRONG: {each}" for each in wrong),
    ]
    return {
        "requests": arguments.requests,
        "shapes": len(clips),
        "recordings": len(made),
        "held_bytes": held,
        "wrong": wrong,
        "said": said,
    }


def shapes(pipe: VideoPipeline) -> Iterator[Clip]:
    """(frames, height, width) of clips that are small enough to be recorded, the smallest first."""
    from kinema.families.base import MAX_TOKENS_RECORDED

    geometry = pipe.geometry
    height, width = (geometry.spatial * patch for patch in geometry.patch[1:])
    clips = [
        (geometry.longest(1) + t * geometry.frame_step, h * height, w * width)
        for t in range(1, 5)
        for h in range(1, 5)
        for w in range(2, 6)
    ]
    clips.sort(key=lambda clip: (clip[0] * clip[1] * clip[2], clip))
    for clip in clips:
        if 2 * geometry.tokens(geometry.latent_size(*clip)) <= MAX_TOKENS_RECORDED:
            yield clip


def _latents(pipe: VideoPipeline, clip: Clip, seed: int) -> torch.Tensor:
    frames, height, width = clip
    size: Any = {"num_frames": frames, "height": height, "width": width}
    request = GenerationRequest(PROMPT, num_inference_steps=STEPS, seed=seed, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KinemaWarning)  # that the model was not trained for it
        state = pipe.prepare(request)
    pipe.run(state)
    return state.latents


def _same(arguments: argparse.Namespace, pipe: VideoPipeline, clip: Clip) -> bool:
    """Whether a fresh pipeline, which records nothing, gives the same bytes."""
    return torch.equal(_latents(pipe, clip, 7), _latents(open_to_measure(arguments, replay=False), clip, 7))
