"""DDIM (arXiv 2010.02502), and CogVideoX's form of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch

from kinema.errors import RequestError
from kinema.fields.config import Range
from kinema.schedulers import spacing
from kinema.schedulers.betas import (
    Beta,
    BetaConfig,
    Spacing,
    StepsOffset,
    betas,
    cumulative_alphas,
    rescaled_betas,
    zero_terminal_snr,
)
from kinema.schedulers.core import Grid, Numbers, SchedulerCore, Terms, count_steps, must_be_off

Prediction = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class DDIMConfig(BetaConfig):
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: StepsOffset = 0
    prediction_type: Prediction = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = "leading"


@dataclass(frozen=True)
class CogVideoXDDIMConfig(BetaConfig):
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.0120
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: StepsOffset = 0
    prediction_type: Prediction = "epsilon"
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Spacing = "leading"
    snr_shift_scale: Annotated[float, Range(1e-3, 1000)] = 3.0


class DDIM(SchedulerCore):
    """diffusers' DDIMScheduler, for configurations that do not clip the predicted x0.

    The step's target is timestep - T // N, whatever the spacing; it need not be on the grid.
    """

    class_name = "DDIMScheduler"
    config_class: ClassVar[type[Any]] = DDIMConfig
    has_noise = True
    follows_timestep = True
    _knows_eta = True

    def __init__(self, config: DDIMConfig) -> None:
        must_be_off(config, "thresholding", "clip_sample")
        beta = betas(config)
        self._prepare(config, cumulative_alphas(rescaled_betas(beta) if config.rescale_betas_zero_snr else beta))

    def _prepare(self, config: DDIMConfig | CogVideoXDDIMConfig, alphas_bar: torch.Tensor) -> None:
        self.config = config
        self._alphas_bar = alphas_bar
        self._final_alpha_bar = alphas_bar.new_tensor(1.0) if config.set_alpha_to_one else alphas_bar[0]

    def draws_noise(self, eta: float = 0.0) -> bool:
        return eta > 0

    def _grid(
        self, num_inference_steps: int | None, sigmas: Numbers | None, timesteps: Numbers | None, mu: float | None
    ) -> Grid:
        """sigmas are √((1-ᾱ)/ᾱ), which the diffusers class does not keep (infinite at zero terminal SNR)."""
        self._refuse(sigmas=sigmas, timesteps=timesteps, mu=mu)
        c = self.config
        steps = count_steps(num_inference_steps)
        train = c.num_train_timesteps
        if steps > train:
            raise RequestError(f"num_inference_steps={steps}, but the model was trained on {train} timesteps")
        if c.timestep_spacing == "linspace":
            fed = np.linspace(0, train - 1, steps).round()[::-1].astype(np.int64)
        elif c.timestep_spacing == "leading":
            fed = (np.arange(0, steps) * (train // steps))[::-1].astype(np.int64) + c.steps_offset
        else:
            fed = spacing.trailing_timesteps(train, train, steps)
        if fed.min() < 0 or fed.max() >= train:
            raise RequestError(
                f"{steps} steps with timestep_spacing={c.timestep_spacing!r} and steps_offset={c.steps_offset} "
                f"run from {fed.max()} to {fed.min()}, outside the training range 0 to {train - 1}; "
                "use another number of steps"
            )
        alphas_bar = torch.cat([self._alphas_bar[torch.from_numpy(fed)], self._final_alpha_bar.reshape(1)])
        return Grid(
            timesteps=torch.from_numpy(fed),
            sigmas=(((1 - alphas_bar) / alphas_bar) ** 0.5).to(torch.float32),
            num_inference_steps=steps,
        )

    def _pair(self, grid: Grid, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ᾱ at this timestep, ᾱ at the target) as 0-dim tensors."""
        here = int(grid.timesteps[index])
        target = here - self.config.num_train_timesteps // grid.num_inference_steps
        return self._alphas_bar[here], self._alphas_bar[target] if target >= 0 else self._final_alpha_bar

    def _rows(self, grid: Grid, index: int, begin: int, eta: float, terms: Terms) -> Sequence[torch.Tensor]:
        here, target = self._pair(grid, index)
        x0, epsilon = self._split(here, terms)
        variance = ((1 - target) / (1 - here)) * (1 - here / target)
        deviation = eta * variance**0.5
        following = target**0.5 * x0 + (1 - target - deviation**2) ** 0.5 * epsilon
        return [following + deviation * terms.noise if eta > 0 else following]

    def _split(self, here: torch.Tensor, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, noise) as the model's output implies them at ᾱ = here."""
        signal, noise = here**0.5, (1 - here) ** 0.5
        sample, output = terms.sample, terms.model_output
        if self.config.prediction_type == "epsilon":
            return (sample - noise * output) / signal, output
        if self.config.prediction_type == "sample":
            return output, (sample - signal * output) / noise
        return signal * sample - noise * output, signal * output + noise * sample

    def noising(self, grid: Grid, index: int) -> tuple[float, float]:
        here = self._alphas_bar[grid.timesteps[index]].to(torch.float32)
        return float(here**0.5), float((1 - here) ** 0.5)


class CogVideoXDDIM(DDIM):
    """diffusers' CogVideoXDDIMScheduler: ᾱ shifted by snr_shift_scale in float64, and no noise at any eta.

    It has the option clip_sample and ignores it.
    """

    class_name = "CogVideoXDDIMScheduler"
    config_class = CogVideoXDDIMConfig
    has_noise = False
    _knows_eta = False

    def __init__(self, config: CogVideoXDDIMConfig) -> None:
        alphas_bar = cumulative_alphas(betas(config, scaled_linear_dtype=torch.float64))
        scale = config.snr_shift_scale
        alphas_bar = alphas_bar / (scale + (1 - scale) * alphas_bar)
        self._prepare(config, zero_terminal_snr(alphas_bar) if config.rescale_betas_zero_snr else alphas_bar)

    def draws_noise(self, eta: float = 0.0) -> bool:
        return False

    def _rows(self, grid: Grid, index: int, begin: int, eta: float, terms: Terms) -> Sequence[torch.Tensor]:
        here, target = self._pair(grid, index)
        x0 = self._split(here, terms)[0]
        keep = ((1 - target) / (1 - here)) ** 0.5
        return [keep * terms.sample + (target**0.5 - here**0.5 * keep) * x0]
