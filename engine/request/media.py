"""Reads the pictures and the video of a request, once, before anything else looks at them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from kinema.errors import warn
from kinema.media.pixels import Pixels, read_image, read_video
from kinema.request.generation import GenerationRequest


class Sizes(Protocol):
    """Which clips a model can make: `kinema.families.geometry.Geometry`."""

    @property
    def frame_step(self) -> int: ...

    @property
    def shortest(self) -> int: ...

    def longest(self, num_frames: int) -> int: ...

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]: ...


def read_media(
    request: GenerationRequest, sizes: Sizes, fits: Callable[[GenerationRequest], object]
) -> GenerationRequest:
    """The request with its pictures and video read into `Pixels`; nothing after this sees a file.

    Every size but num_frames is known. Where that is None it becomes the video's length, cut to one that the model can
    make, with a warning. fits: raises if such a request is too large; a video is read no further than it fits.
    """
    if request.image is not None:
        request = replace(request, image=read_image(request.image))
    if request.last_image is not None:
        request = replace(request, last_image=read_image(request.last_image, "last_image"))
    if request.video is None:
        return request
    assert request.height is not None and request.width is not None
    sizes.latent_size(request.num_frames or sizes.shortest, request.height, request.width)
    video = read_video(
        *(request.video, request.height, request.width, request.num_frames),
        fits=lambda num_frames: fits(replace(request, num_frames=num_frames)),
    )
    frames = video.num_frames
    length = min(frames, sizes.longest(frames))
    if length < frames:
        video = Pixels(video.frames[:length])
        warn(
            f"the video has {frames} frames, and this model makes {length} or {length + sizes.frame_step}: "
            f"its first {length} are taken",
            stacklevel=3,
        )
    return replace(request, video=video, num_frames=length)
