"""What a request begins with: noise, or a video."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.families.base import Parts
from kinema.request.generation import GenerationRequest
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
    _, height, width = request.clip
    frames: torch.Tensor = request.video.values(height, width)  # [T, 3, H, W] in [−1, 1]
    vae = parts.vae("encoder")
    latents = vae.normalize(vae.encode(frames.transpose(0, 1).unsqueeze(0).contiguous()).mode())
    parts.release("vae")
    return latents
