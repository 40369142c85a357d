"""What a run gives back: videos, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kinema.errors import RequestError
from kinema.media.postprocess import unit_to_uint8
from kinema.media.video import DEFAULT_FPS, Video
from kinema.request.stats import Stats


@dataclass(eq=False, repr=False)
class VideoOutput:
    """`frames` are exactly what diffusers returns for `output_type`:

    np: float32 [B, T, H, W, 3] in 0..1. pt: [B, T, 3, H, W] in 0..1. pil: B lists of T pictures.
    latent: the latents, undecoded.
    """

    frames: Any
    fps: float | Fraction = DEFAULT_FPS
    output_type: str = "np"
    stats: Stats = field(default_factory=Stats)

    @cached_property
    def videos(self) -> list[Video]:
        """One `Video` per sample, made from `frames` when first asked for."""
        if self.output_type == "latent":
            raise RequestError("output_type='latent' gives latents and no videos: ask for 'np', 'pt' or 'pil'")
        return [Video(self._pixels(clip), self.fps) for clip in self.frames]

    def _pixels(self, clip: Any) -> npt.NDArray[np.uint8]:
        if self.output_type == "pil":
            return np.stack([np.asarray(picture) for picture in clip])
        if self.output_type == "pt":
            return unit_to_uint8(clip.permute(0, 2, 3, 1).float().contiguous())
        return unit_to_uint8(torch.from_numpy(clip))

    def __repr__(self) -> str:
        return f"VideoOutput({len(self.frames)} x {self.output_type}, {self.stats.total_seconds:.2f} s)"
