"""Noise schedules given by betas (variance-preserving diffusion): ᾱ, the cumulative product of 1 - β."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from kinema.errors import CheckpointError
from kinema.fields.config import Length, Range

TrainTimesteps = Annotated[int, Range(2, 100_000)]
Beta = Annotated[float, Range(1e-8, 0.999)]
Spacing = Literal["linspace", "leading", "trailing"]
StepsOffset = Annotated[int, Range(-100_000, 100_000)]


@dataclass(frozen=True)
class BetaConfig:
    """The options that diffusers' beta-based schedulers share."""

    num_train_timesteps: TrainTimesteps = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: Annotated[tuple[float, ...], Range(0, 1), Length(2, 100_000)] | None = None
    rescale_betas_zero_snr: bool = False


def betas(config: BetaConfig, *, scaled_linear_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """β [T], float32 (scaled_linear in `scaled_linear_dtype`), before any rescaling."""
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        if len(config.trained_betas) != steps:
            raise CheckpointError(f"trained_betas has {len(config.trained_betas)} entries, wanted {steps}")
        return torch.tensor(config.trained_betas, dtype=torch.float32, device="cpu")
    if config.beta_schedule == "linear":
        return torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32, device="cpu")
    if config.beta_schedule == "scaled_linear":
        start, end = config.beta_start**0.5, config.beta_end**0.5
        return torch.linspace(start, end, steps, dtype=scaled_linear_dtype, device="cpu") ** 2

    def cosine(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    steps_of = [min(1 - cosine((i + 1) / steps) / cosine(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(steps_of, dtype=torch.float32, device="cpu")


def cumulative_alphas(beta: torch.Tensor) -> torch.Tensor:
    """ᾱ [T] of β [T]."""
    return torch.cumprod(1.0 - beta, dim=0)


def zero_terminal_snr(alphas_bar: torch.Tensor) -> torch.Tensor:
    """ᾱ [T] with √ᾱ shifted and scaled so that the last is zero and the first is kept.

    Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891).
    """
    root = alphas_bar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


def rescaled_betas(beta: torch.Tensor) -> torch.Tensor:
    """β [T] whose ᾱ has zero terminal signal-to-noise ratio."""
    alphas_bar = zero_terminal_snr(cumulative_alphas(beta))
    return 1 - torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
