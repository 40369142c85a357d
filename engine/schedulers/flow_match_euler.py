"""FlowMatchEulerDiscrete: x ← x + (σ_next - σ)·v on a shifted grid (LTX-Video, HunyuanVideo, Mochi, …)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch

from kinema.errors import RequestError
from kinema.fields.config import Range
from kinema.schedulers import spacing
from kinema.schedulers.betas import TrainTimesteps
from kinema.schedulers.core import Grid, Numbers, SchedulerCore, Terms, count_steps, must_be_off


@dataclass(frozen=True)
class FlowMatchEulerDiscreteConfig:
    num_train_timesteps: TrainTimesteps = 1000
    shift: spacing.Shift = 1.0
    use_dynamic_shifting: bool = False
    base_shift: Annotated[float, Range(-100, 100)] | None = 0.5
    max_shift: Annotated[float, Range(-100, 100)] | None = 1.15
    base_image_seq_len: Annotated[int, Range(1, 10**9)] = 256
    max_image_seq_len: Annotated[int, Range(1, 10**9)] = 4096
    invert_sigmas: bool = False
    shift_terminal: spacing.ShiftTerminal | None = None
    use_karras_sigmas: spacing.Flag = False
    use_exponential_sigmas: spacing.Flag = False
    use_beta_sigmas: spacing.Flag = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    stochastic_sampling: bool = False


class FlowMatchEulerDiscrete(SchedulerCore):
    """diffusers' FlowMatchEulerDiscreteScheduler, without its per-token timesteps.

    Its default grid applies the static shift twice: the ends of the grid are shifted in the constructor, and
    everything between them again in set_timesteps. Pipelines that pass sigmas avoid that. Both are kept.
    """

    class_name = "FlowMatchEulerDiscreteScheduler"
    config_class = FlowMatchEulerDiscreteConfig

    def __init__(self, config: FlowMatchEulerDiscreteConfig) -> None:
        must_be_off(config, "invert_sigmas")
        self.config = config
        self.has_noise = config.stochastic_sampling
        self._conversion = spacing.conversion_of(config)

    def without_noise(self) -> FlowMatchEulerDiscrete:
        return FlowMatchEulerDiscrete(replace(self.config, stochastic_sampling=False))

    def dynamic_shift(self, tokens: int) -> float:
        """mu for a video of `tokens` tokens: linear from base_shift to max_shift between the base lengths."""
        c = self.config
        if c.base_shift is None or c.max_shift is None:
            raise RequestError("base_shift or max_shift is null in scheduler_config.json; pass mu itself")
        if c.base_image_seq_len == c.max_image_seq_len:
            raise RequestError("base_image_seq_len and max_image_seq_len are the same; pass mu itself")
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        return float(tokens * slope + (c.base_shift - slope * c.base_image_seq_len))

    def _grid(
        self, num_inference_steps: int | None, sigmas: Numbers | None, timesteps: Numbers | None, mu: float | None
    ) -> Grid:
        """timesteps fp32 = 1000·σ, unless `timesteps` are given: those are fed as they are, while the sigmas
        that come from them are shifted."""
        c = self.config
        if c.use_dynamic_shifting == (mu is None):
            raise RequestError(f"use_dynamic_shifting={c.use_dynamic_shifting}, but mu={mu}")
        steps = count_steps(num_inference_steps, sigmas, timesteps)
        fed = None if timesteps is None else spacing.as_array(timesteps).astype(np.float32)
        if sigmas is not None:
            levels = spacing.as_array(sigmas).astype(np.float32)
        elif fed is not None:
            levels = fed / c.num_train_timesteps
        else:
            levels = np.linspace(*self._ends(), steps) / c.num_train_timesteps
        if mu is not None:
            levels = spacing.dynamically_shifted(c.time_shift_type, mu, levels)
        else:
            levels = spacing.shifted(c.shift, levels)
        if c.shift_terminal:
            levels = spacing.stretched_to(c.shift_terminal, levels)
        if self._conversion is not None:
            levels = spacing.CONVERSIONS[self._conversion](levels[-1].item(), levels[0].item(), steps)
        final = torch.from_numpy(levels).to(torch.float32)
        return Grid(
            timesteps=final * c.num_train_timesteps if fed is None else torch.from_numpy(fed),
            sigmas=torch.cat([final, final.new_zeros(1)]),
            num_inference_steps=steps,
        )

    def _ends(self) -> tuple[float, float]:
        """The first and the last timestep of the training grid, (once) shifted if the shift is static."""
        c = self.config
        ends = torch.tensor([c.num_train_timesteps, 1.0], dtype=torch.float32, device="cpu") / c.num_train_timesteps
        if not c.use_dynamic_shifting:
            ends = c.shift * ends / (1 + (c.shift - 1) * ends)
        first, last = ends.tolist()
        return first * c.num_train_timesteps, last * c.num_train_timesteps

    def _rows(self, grid: Grid, index: int, begin: int, eta: float, terms: Terms) -> Sequence[torch.Tensor]:
        sigma, following = grid.sigmas[index], grid.sigmas[index + 1]
        if self.has_noise:
            x0 = terms.sample - sigma * terms.model_output
            return [(1.0 - following) * x0 + following * terms.noise]
        return [terms.sample + (following - sigma) * terms.model_output]

    def noising(self, grid: Grid, index: int) -> tuple[float, float]:
        sigma = grid.sigmas[index]
        return float(1.0 - sigma), float(sigma)

    def result_dtype(self, sample: torch.dtype, model_output: torch.dtype) -> torch.dtype:
        return model_output
