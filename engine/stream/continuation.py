"""Continues a clip, one latent frame at a time, each conditioned on the ones before it.

The plain loop: every step runs the whole window through the transformer, past frames at timestep 0 and the new one at
its noise level, under a block-causal mask (diffusion forcing, Chen et al. 2024, arXiv 2407.01392). It needs a model
that was trained that way, as the sample model is.
"""

from __future__ import annotations

import torch

from kinema import schedulers
from kinema.denoise.state import RequestState
from kinema.errors import RequestError
from kinema.fields.values import of_kind, whole
from kinema.ops.attention import BlockCausal
from kinema.ops.running import running
from kinema.pipeline import VideoPipeline
from kinema.schedulers import draw_noise


def extend(pipe: VideoPipeline, state: RequestState, latent_frames: int, *, window: int = 5) -> None:
    """Continue a finished request's clip until it has `latent_frames` latent frames.

    window: latent frames that the transformer sees at once, the new one included. The new frames' noise comes from
    the request's own generators, and they take as many steps, with the same guidance, as the clip did.
    """
    of_kind("pipe", pipe, VideoPipeline)
    of_kind("state", state, RequestState).check_model(pipe.model)
    latent_frames, window = whole("latent_frames", latent_frames), whole("window", window, 2)
    if not state.schedule.done:
        raise RequestError(f"the request has done {state.step_index} of {state.num_steps} steps: finish it first")
    if len(pipe.model.experts) > 1 or not state.conditioning.plain or pipe.geometry.patch[0] != 1:
        raise RequestError("only text-to-video models with one expert and a temporal patch of 1 continue a clip")
    state.heed_interrupt()
    frames = list(torch.split(state.latents, 1, dim=2))
    with running("the continuation", pipe.options.threads, state.stop):
        while len(frames) < latent_frames:
            frames.append(_next_frame(pipe, state, torch.cat(frames[-(window - 1) :], dim=2)))
    state.latents = torch.cat(frames, dim=2)


def _next_frame(pipe: VideoPipeline, state: RequestState, past: torch.Tensor) -> torch.Tensor:
    """The latent frame [B, C, 1, h, w] that follows `past` [B, C, P, h, w]."""
    (expert,) = pipe.model.experts
    transformer = pipe.components.transformer(expert)
    contexts, guidance = state.contexts(expert, transformer), state.guidance[expert]
    per_frame = past.shape[3] * past.shape[4] // (pipe.geometry.patch[1] * pipe.geometry.patch[2])
    schedule = schedulers.start(state.schedule.core, state.schedule.grid, generator=state.schedule.generator)
    new = draw_noise(past[:, :, :1].shape, state.schedule.generator).to(past)
    while not schedule.done:
        clip = torch.cat((past, new), dim=2)
        predictions = []
        for context in contexts:
            rows = clip.repeat(context.rows // len(clip), 1, 1, 1, 1)
            levels = torch.zeros(len(rows), rows.shape[2], dtype=torch.float32, device=rows.device)
            levels[:, -1] = schedule.timestep
            predictions.append(transformer(rows, levels, context, causal=BlockCausal(per_frame))[:, :, -1:])
        cond, *uncond = torch.split(torch.cat(predictions), len(past))
        new = schedulers.step(pipe.ops, schedule, new, cond, *uncond, guidance=guidance if uncond else 1.0)
    return new
