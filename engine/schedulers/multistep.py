"""What UniPC and DPM-Solver share: their options, their noise levels and the conversion of model outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from kinema.errors import CheckpointError, RequestError
from kinema.schedulers import spacing
from kinema.schedulers.betas import BetaConfig, Spacing, StepsOffset, betas, cumulative_alphas, rescaled_betas
from kinema.schedulers.core import Grid, SchedulerCore, Terms, must_be_off


@dataclass(frozen=True)
class MultistepConfig(BetaConfig):
    solver_order: Literal[1, 2, 3] = 2
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    lower_order_final: bool = True
    use_karras_sigmas: spacing.Flag = False
    use_exponential_sigmas: spacing.Flag = False
    use_beta_sigmas: spacing.Flag = False
    use_flow_sigmas: spacing.Flag = False
    flow_shift: spacing.Shift | None = 1.0
    timestep_spacing: Spacing = "linspace"
    steps_offset: StepsOffset = 0
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"


@dataclass(frozen=True)
class Level:
    """One noise level as fp32 0-dim tensors: x = α·x0 + σ·ε, λ = log α - log σ (+inf at σ = 0)."""

    alpha: torch.Tensor
    sigma: torch.Tensor
    lam: torch.Tensor


class MultistepCore(SchedulerCore):
    """Sigmas are √((1-ᾱ)/ᾱ), or flow levels with use_flow_sigmas; the conversion to (α, σ) undoes either.

    predicts_data: the solver integrates x0 predictions; otherwise noise predictions.
    """

    predicts_data: bool

    def __init__(self, config: Any, *, predicts_data: bool) -> None:
        must_be_off(config, "thresholding")
        if config.prediction_type == "flow_prediction" and not predicts_data:
            raise CheckpointError(
                f"{self.class_name}: prediction_type='flow_prediction' needs a solver of x0 predictions "
                "(predict_x0=true, or an algorithm_type that ends in ++)"
            )
        if config.use_flow_sigmas and config.flow_shift is None and not config.use_dynamic_shifting:
            raise CheckpointError(f"{self.class_name}: flow_shift is null, but use_flow_sigmas needs one")
        self.config = config
        self.predicts_data = predicts_data
        self._conversion = spacing.conversion_of(config)
        beta = betas(config)
        self._alphas_bar = cumulative_alphas(rescaled_betas(beta) if config.rescale_betas_zero_snr else beta)
        if config.rescale_betas_zero_snr:
            self._alphas_bar[-1] = 2**-24  # diffusers' stand-in for zero, so that the first sigma is finite
        self._train_sigmas = (((1 - self._alphas_bar) / self._alphas_bar) ** 0.5).numpy()

    def noising(self, grid: Grid, index: int) -> tuple[float, float]:
        alpha, sigma = self._alpha_sigma(grid.sigmas[index])
        return float(alpha), float(sigma)

    def _alpha_sigma(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.use_flow_sigmas:
            return 1 - sigma, sigma
        alpha = 1 / ((sigma**2 + 1) ** 0.5)
        return alpha, sigma * alpha

    def _level(self, grid: Grid, index: int) -> Level:
        alpha, sigma = self._alpha_sigma(grid.sigmas[index])
        return Level(alpha, sigma, torch.log(alpha) - torch.log(sigma))

    def _converted(self, grid: Grid, index: int, terms: Terms) -> torch.Tensor:
        """The model's output at step `index` as the x0 (or noise) that the solver integrates."""
        kind, sample, output = self.config.prediction_type, terms.sample, terms.model_output
        alpha, sigma = self._alpha_sigma(grid.sigmas[index])
        if self.predicts_data:
            if kind == "sample":
                return output
            if kind == "epsilon":
                return (sample - sigma * output) / alpha
            if kind == "v_prediction":
                return alpha * sample - sigma * output
            return sample - grid.sigmas[index] * output
        if kind == "epsilon":
            return output
        if kind == "sample":
            return (sample - alpha * output) / sigma
        return alpha * output + sigma * sample

    def _spaced(self, steps: int, last: int | None = None) -> np.ndarray:
        """int64 [steps], descending: training timesteps by timestep_spacing, up to `last` (all, by default)."""
        c = self.config
        last = c.num_train_timesteps if last is None else last
        if c.timestep_spacing == "linspace":
            return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        if c.timestep_spacing == "trailing":
            return spacing.trailing_timesteps(last, c.num_train_timesteps, steps)
        ratio = last // (steps + 1)
        spaced: np.ndarray = (np.arange(0, steps + 1) * ratio)[::-1][:-1].astype(np.int64) + c.steps_offset
        return spaced

    def _interpolated(self, timesteps: np.ndarray) -> np.ndarray:
        """Training sigmas at integer timesteps [n]; RequestError outside the training range."""
        top = len(self._train_sigmas) - 1
        if timesteps.min() < 0 or timesteps.max() > top:
            raise RequestError(
                f"timesteps run from {timesteps.max()} to {timesteps.min()}, but the model was trained on 0 to {top}; "
                "use another number of steps, timestep_spacing or steps_offset"
            )
        sigmas: np.ndarray = np.interp(timesteps, np.arange(0, top + 1), self._train_sigmas)
        return sigmas

    def _assembled(self, sigmas: np.ndarray, timesteps: np.ndarray, last: float) -> Grid:
        """Truncate timesteps to int64 and append the final sigma."""
        if not (np.isfinite(sigmas).all() and np.isfinite(timesteps).all()):
            raise self._no_levels()
        return Grid(
            timesteps=torch.from_numpy(timesteps).to(torch.int64),
            sigmas=torch.from_numpy(np.concatenate([sigmas, [last]]).astype(np.float32)),
            num_inference_steps=len(timesteps),
        )

    def _train_sigma_min(self) -> float:
        return float(((1 - self._alphas_bar[0]) / self._alphas_bar[0]) ** 0.5)
