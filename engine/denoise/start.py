"""What a request begins with: noise, or a video with noise added."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.families.base import Parts
from kinema.request.generation import GenerationRequest
from kinema.schedulers import SchedulerState, draw_noise


def starting_latents(
    parts: Parts,
    request: GenerationRequest,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    schedule: SchedulerState,
) -> torch.Tensor:
    """Latents [B, C, T, h, w] fp32 for the first step: noise, drawn or given; of video-to-video, the video in it."""
    given = request.latents if request.latents is not None else draw_noise(shape, generators)
    noise = given.to(parts.ops.device, torch.float32, copy=True)
    if request.video is None:
        return noise
    _, height, width = request.clip
    frames: torch.Tensor = request.video.values(height, width)  # [T, 3, H, W] in [−1, 1]
    clean = parts.encode(frames.transpose(0, 1).unsqueeze(0).contiguous())
    keep, add = schedule.core.noising(schedule.grid, schedule.begin)
    return keep * clean + add * noise
