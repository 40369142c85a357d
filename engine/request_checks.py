"""What a model cannot do is refused here, before any of its parts is loaded; at the end, numbers that are none."""

from __future__ import annotations

import torch

from kinema.checkpoints import PipelineOptions
from kinema.errors import KinemaError, RequestError, warn
from kinema.geometry import Geometry
from kinema.models.wan import WanConfig
from kinema.options import GenerationDefaults
from kinema.request import GenerationRequest
from kinema.schedulers import SchedulerCore
from kinema.vae.wan import WanVAEConfig

MAX_PROMPT_TOKENS = 512


def warn_beyond_training(request: GenerationRequest, trained: GenerationDefaults, declared: bool) -> None:
    """Say that a small model was not trained for such a clip. declared: its folder says what it was trained for."""
    num_frames, height, width = request.clip
    problems = []
    if (height, width) != (trained.height, trained.width):
        problems.append(f"of {trained.width}x{trained.height} pixels, asked for {width}x{height}")
    if num_frames > trained.num_frames:
        problems.append(f"of at most {trained.num_frames} frames, asked for {num_frames}")
    if declared and problems:
        warn(f"this model was trained on clips {', '.join(problems)}: what comes is worse", stacklevel=3)


def check_request(
    request: GenerationRequest,
    transformer: WanConfig,
    vae: WanVAEConfig,
    options: PipelineOptions,
    scheduler: SchedulerCore,
) -> tuple[int, ...]:
    """The shape [B, C, T, h, w] of a completed request's latents. RequestError names what this model cannot do."""
    latent_size = Geometry.of(transformer, vae).latent_size(*request.clip)
    shape = (request.samples, transformer.latent_channels, *latent_size)
    if request.latents is not None and request.latents.shape != shape:
        raise RequestError(f"latents are {tuple(request.latents.shape)}: this request wants {shape} [B, C, T, h, w]")
    if request.guidance_scale_2 is not None and options.boundary_ratio is None:
        raise RequestError("guidance_scale_2 is for a model with two experts, this one has one: leave it out")
    trained = scheduler.config.num_train_timesteps
    if request.num_inference_steps is not None and request.num_inference_steps > trained:
        raise RequestError(
            f"num_inference_steps is {request.num_inference_steps}: {scheduler.class_name} has {trained} timesteps, "
            "and more steps would only repeat them"
        )
    if request.tiling is not None:
        request.tiling.check(vae)
    _check_text(request, transformer)
    _check_images(request, transformer, options)
    return shape


def _check_text(request: GenerationRequest, transformer: WanConfig) -> None:
    if request.max_sequence_length is not None and request.max_sequence_length > MAX_PROMPT_TOKENS:
        raise RequestError(
            f"max_sequence_length is {request.max_sequence_length}: Wan reads up to {MAX_PROMPT_TOKENS} tokens"
        )
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        embeds = getattr(request, name)
        if embeds is not None and (embeds.shape[0], embeds.shape[2]) != (request.prompts, transformer.text_dim):
            raise RequestError(
                f"{name} are {tuple(embeds.shape)}: wanted [{request.prompts}, L, {transformer.text_dim}], "
                "a row per prompt"
            )


def _check_images(request: GenerationRequest, transformer: WanConfig, options: PipelineOptions) -> None:
    takes_channels = transformer.in_channels != transformer.latent_channels
    if request.image is None:
        if takes_channels:
            raise RequestError("this is an image-to-video model: give image=, or load a text-to-video model")
        return
    if not takes_channels and not options.expand_timesteps:
        raise RequestError("this is a text-to-video model: image= needs an image-to-video checkpoint (I2V, TI2V)")
    between_two = transformer.pos_embed_seq_len is not None
    if between_two and request.last_image is None:
        raise RequestError("this model interpolates between two frames: give last_image= too")
    first_only = not takes_channels or (transformer.image_dim is not None and not between_two)
    if first_only and request.last_image is not None:
        raise RequestError("this model takes a first frame only: leave last_image out")
    if request.image_embeds is None:
        return
    if transformer.image_dim is None:
        raise RequestError("this model reads no CLIP tokens: leave image_embeds out")
    images, length, width = request.image_embeds.shape
    wanted = 1 + (request.last_image is not None)
    tokens = length if transformer.pos_embed_seq_len is None else transformer.pos_embed_seq_len // 2
    if (images, length, width) != (wanted, tokens, transformer.image_dim):
        raise RequestError(
            f"image_embeds are {(images, length, width)}: wanted [{wanted}, "
            f"{tokens if between_two else 'L'}, {transformer.image_dim}], one row per image"
        )


def check_finite(result: torch.Tensor, what: str) -> torch.Tensor:
    """`result` [B, ...] itself; KinemaError if it holds NaN or infinity."""
    if not bool(torch.isfinite(result.sum(dtype=torch.float64))):  # either makes the sum one of them, in one pass
        raise KinemaError(
            f"{what} hold NaN or infinity: the model overflowed in its precision (try precision='fp32'), or its "
            "weights or what it was given hold them"
        )
    return result
