"""What a request begins with: noise, or a video."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.families.base import Parts
from kinema.request.generation import GenerationRequest
from kinema.request.media import video_frames
from kinema.schedulers import draw_noise


def first_latents(
    request: GenerationRequest, shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device
) -> torch.Tensor:
    """Noise [B, C, T, h, w] fp32, drawn or as it was given."""
    latents = request.latents if request.latents is not None else draw_noise(shape, generators)
    return latents.to(device, torch.float32, copy=True)


def encode_video(parts: Parts, request: GenerationRequest) -> torch.Tensor | None:
    """The request's video, if it has one, as normalised latents [1, C, T, h, w]."""
    if request.video is None:
        return None
    vae = parts.vae("encoder")
    latents = vae.normalize(vae.encode(video_frames(request)).mode())
    parts.release("vae")
    return latents
