"""kinema bench contact-sheet: prompts and the clips they give, frame by frame, as one picture."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kinema.cli.load import MODEL_HELP, add_load_arguments, open_to_measure
from kinema.cli.output import emit

if TYPE_CHECKING:
    from PIL import Image

    from kinema.media.video import Video

PROMPTS = (
    "a red circle moving left",
    "A yellow star that is quickly moving up",
    "a blue square standing still on a grey background",
    "the green ring slides to the right",
    "a white triangle moving down on a purple background",
    "an orange heart slowly moving right",
    "a pink diamond gliding down on a brown background",
    "a purple cross drifts left on a green background",
    "a handwritten three in yellow moving right",
    "the digit 7 in white moving up on a blue background",
    "a green 0 stands still",
    "a red handwritten five sliding downwards",
)
FRAMES_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("-o", "--output", default="contact_sheet.png", help="picture to write (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same clips (%(default)s)")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from kinema.media.staging import check_writable
    from kinema.media.video import Video

    check_writable(arguments.output, num_frames=1)
    pipe = open_to_measure(arguments)
    steps = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    output = pipe(list(PROMPTS), seed=arguments.seed, **steps)
    assert not isinstance(output, tuple)
    picture = sheet(list(PROMPTS), output.videos)
    Video(np.asarray(picture)[None]).save(arguments.output)
    emit(f"{arguments.output}: {len(PROMPTS)} prompts, {FRAMES_SHOWN} frames of each")
    return 0


def sheet(prompts: list[str], videos: list[Video], *, zoom: int = 2, columns: int = 2) -> Image.Image:
    """Each prompt above some frames of its clip, evenly spaced, `columns` clips side by side."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=14)
    height, width = videos[0].height * zoom, videos[0].width * zoom
    gap, text = 3, 22
    clip_width = FRAMES_SHOWN * (width + gap)
    rows = -(-len(videos) // columns)
    page = Image.new("RGB", (columns * (clip_width + 12), rows * (height + text + 10)), "white")
    draw = ImageDraw.Draw(page)
    for i, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        left, top = (i % columns) * (clip_width + 12) + 6, (i // columns) * (height + text + 10)
        draw.text((left, top + 3), prompt, fill="black", font=font)
        for j in range(FRAMES_SHOWN):
            frame = video.frames[round(j * (video.num_frames - 1) / (FRAMES_SHOWN - 1))]
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (left + j * (width + gap), top + text))
    return page
