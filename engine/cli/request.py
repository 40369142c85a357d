"""The options by which a verb asks for a generation: those of `GenerationRequest`, under the same names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kinema.cli.caching import add_cache_argument, cache_from
from kinema.cli.parser import text

if TYPE_CHECKING:
    from kinema.request.generation import GenerationRequest

_FIELDS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "num_videos_per_prompt",
    "seed",
    "video",
    "strength",
    "max_sequence_length",
)


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """What is left out is the model's default, so no option has a default here."""
    clip = parser.add_argument_group("the clip (default: what the model was made for)")
    clip.add_argument("--height", type=int, metavar="PIXELS", help="height of a frame")
    clip.add_argument("--width", type=int, metavar="PIXELS", help="width of a frame")
    clip.add_argument("--num-frames", type=int, metavar="N", help="length in frames; 1 makes an image")
    clip.add_argument(
        "--num-videos", type=int, dest="num_videos_per_prompt", metavar="N", help="several videos of this prompt"
    )
    clip.add_argument("--image", metavar="FILE", help="the first frame (image-to-video models)")
    clip.add_argument("--last-image", metavar="FILE", help="the last frame (models that were trained for it)")
    clip.add_argument(
        "--video",
        metavar="FILE",
        help="start from this video instead of noise; --num-frames takes only its first frames",
    )
    clip.add_argument(
        "--strength", type=float, metavar="S", help="how far --video is changed, above 0 and up to 1 (0.8)"
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--negative-prompt", type=text, metavar="TEXT", help="what the video should not show")
    sampling.add_argument(
        "--steps",
        type=int,
        dest="num_inference_steps",
        metavar="N",
        help="denoising steps: more take longer and look better",
    )
    sampling.add_argument(
        "--guidance-scale", type=float, metavar="G", help="how strongly to follow the prompt; 1 turns guidance off"
    )
    sampling.add_argument(
        "--guidance-scale-2", type=float, metavar="G", help="the same for the second expert of a two-expert model"
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="same seed, same video; omitted or -1: a new seed")
    sampling.add_argument("--max-sequence-length", type=int, metavar="N", help="tokens of the prompt that count")
    add_cache_argument(sampling)
    sampling.add_argument("--tiled", action="store_true", help="decode in tiles: less memory, blended seams")


def request_from(arguments: argparse.Namespace) -> GenerationRequest:
    """Check what can be checked without a model, pictures included. Raises RequestError."""
    from kinema.media.inputs import load_image
    from kinema.request.generation import GenerationRequest
    from kinema.vae.tiling import Tiling

    given: dict[str, Any] = {name: getattr(arguments, name) for name in _FIELDS}
    for name in ("image", "last_image"):
        path = getattr(arguments, name)
        given[name] = None if path is None else load_image(path)
    given["cache"] = cache_from(arguments.cache)
    given["tiling"] = Tiling() if arguments.tiled else None
    return GenerationRequest(**{name: value for name, value in given.items() if value is not None})
