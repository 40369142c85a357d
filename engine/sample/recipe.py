"""What the sample model is and how it is trained: every number in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from kinema.encoders.umt5 import UMT5Config
from kinema.errors import RequestError
from kinema.families.wan.config import WanConfig
from kinema.families.wan.vae.autoencoder import WanVAEConfig
from kinema.sample.tokenizer import VOCABULARY_SIZE


@dataclass(frozen=True)
class Schedule:
    """A run of Muon, at `matrix_rate`, for the matrices between hidden layers, and of AdamW (Loshchilov & Hutter 2019,
    arXiv 1711.05101), at `learning_rate`, for everything else.

    Rates rise over `warmup` steps, hold, and fall linearly to 2 % over the last `decay` of the run. `average`:
    the longest memory of the weights' moving average, which is what ships, as 1 − 1/steps.
    """

    steps: int
    learning_rate: float
    matrix_rate: float = 0.02
    warmup: int = 100
    decay: float = 0.4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average: float = 0.999

    def pace(self, step: int) -> float:
        """The share of the full rates that step `step`, counted from 0, takes."""
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(0.02, falling))

    def memory(self, step: int) -> float:
        """The share of the old average that step `step` keeps; short at first, so that the start is forgotten."""
        return min(self.average, (1 + step) / (10 + step))


@dataclass(frozen=True)
class VaeRecipe:
    """Training of the VAE on crops around the subject, at the end on whole frames.

    loss = |x − x̂| + edges · |∇x − ∇x̂| + kl · KL(q ‖ N(0, 1)), each a mean over its elements. Steps take turns at the
    clip lengths of `frames`, with as many clips as make about `batch` of the longest: short clips show more subjects
    for the same work, long ones the latents whose whole past is real.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=7000, learning_rate=3e-3, matrix_rate=0.04))
    batch: int = 4
    crop: int = 32
    frames: tuple[int, ...] = (5, 5, 9, 17)
    whole_frames: float = 0.1
    edges: float = 0.5
    kl: float = 1e-4


@dataclass(frozen=True)
class PoolRecipe:
    """The encoded clips that training reads: see `ClipPool`. latents: latent frames of each clip."""

    latents: int
    start: int = 1024
    per_step: int = 4


@dataclass(frozen=True)
class DitRecipe:
    """Training of the transformer and the text encoder on encoded clips.

    Three kinds of batches: single images, whole clips with one noise level, and windows of a long clip with a noise
    level per latent frame under a block-causal mask (diffusion forcing, arXiv 2407.01392), which is what continuing
    a video needs. Noise levels are σ = 1/(1 + e^−u), u ~ N(noise_mean, noise_spread²): what a clip shows is decided at
    high noise, since a subject can still be made out in many noisy values.
    """

    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=24000, learning_rate=1.5e-3, warmup=200, decay=0.3)
    )
    batch: int = 64
    image_batch: int = 96
    images_first: float = 0.3
    image_share: float = 0.15
    causal_share: float = 0.4
    drop_caption: float = 0.1
    noise_mean: float = 0.8
    noise_spread: float = 1.4
    clean_context: float = 0.5
    clips: PoolRecipe = field(default_factory=lambda: PoolRecipe(latents=9, start=1024, per_step=1))
    images: PoolRecipe = field(default_factory=lambda: PoolRecipe(latents=1, start=4096, per_step=4))

    @property
    def images_until(self) -> int:
        """The first step that sees clips, not images alone."""
        return round(self.images_first * self.schedule.steps)


@dataclass(frozen=True)
class Recipe:
    """The whole sample model. Sizes: 64×64 pixels, 4k + 1 frames, 17 by default, at `fps` frames a second."""

    seed: int = 0
    size: int = 64
    num_frames: int = 17
    fps: float = 12.0
    vae: WanVAEConfig = field(
        default_factory=lambda: WanVAEConfig(
            base_dim=24,
            decoder_base_dim=32,
            z_dim=16,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            latents_mean=(0.0,) * 16,
            latents_std=(1.0,) * 16,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
        )
    )
    transformer: WanConfig = field(
        default_factory=lambda: WanConfig(
            patch_size=(1, 2, 2),
            num_attention_heads=3,
            attention_head_dim=64,
            in_channels=16,
            out_channels=16,
            text_dim=96,
            freq_dim=128,
            ffn_dim=768,
            num_layers=6,
        )
    )
    text: UMT5Config = field(
        default_factory=lambda: UMT5Config(
            vocab_size=VOCABULARY_SIZE, d_model=96, d_kv=24, d_ff=256, num_layers=2, num_heads=4
        )
    )
    train_vae: VaeRecipe = field(default_factory=VaeRecipe)
    train_dit: DitRecipe = field(default_factory=DitRecipe)


def changed(recipe: Any, change: str) -> Any:
    """The recipe with another number, as in "train_dit.noise_mean=2"; RequestError where it has no such number."""
    path, given, value = change.partition("=")
    name, nested, rest = path.partition(".")
    numbers = {key: now for key, now in vars(recipe).items() if is_dataclass(now) or type(now) in (int, float)}
    if not given or name not in numbers or bool(nested) != is_dataclass(numbers[name]):
        raise RequestError(f"got {change!r}, wanted NAME=NUMBER or NAME.NAME=NUMBER with one of {', '.join(numbers)}")
    if nested:
        return replace(recipe, **{name: changed(numbers[name], f"{rest}={value}")})
    try:
        number = type(numbers[name])(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"got {change!r}, wanted a number like {numbers[name]}")
    return replace(recipe, **{name: number})
