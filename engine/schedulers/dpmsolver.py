"""DPMSolverMultistep: DPM-Solver and DPM-Solver++ of order 1 to 3, ODE and SDE (arXiv 2206.00927, 2211.01095)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch

from kinema.errors import CheckpointError, RequestError
from kinema.fields.config import Range
from kinema.schedulers import spacing
from kinema.schedulers.core import Grid, Numbers, Terms, count_steps
from kinema.schedulers.multistep import MultistepConfig, MultistepCore


@dataclass(frozen=True)
class DPMSolverMultistepConfig(MultistepConfig):
    # "deis", and solver types of other classes, mean the defaults, as in diffusers
    algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"] = "dpmsolver++"
    solver_type: Literal["midpoint", "heun", "logrho", "bh1", "bh2"] = "midpoint"
    euler_at_final: bool = False
    use_lu_lambdas: spacing.Flag = False
    lambda_min_clipped: Annotated[float, Range(-float("inf"), 1000)] = -float("inf")
    variance_type: spacing.VarianceType | None = None
    # kinema's own: steps of an SDE that are longer than this in λ are those of the ODE; None: none, as in diffusers
    noise_max_step: Annotated[float, Range(0, 1e6)] | None = None


class DPMSolverMultistep(MultistepCore):
    """diffusers' DPMSolverMultistepScheduler; one delay line of solver_order - 1 converted outputs."""

    class_name = "DPMSolverMultistepScheduler"
    config_class = DPMSolverMultistepConfig

    def __init__(self, config: DPMSolverMultistepConfig) -> None:
        algorithm = "dpmsolver++" if config.algorithm_type == "deis" else config.algorithm_type
        super().__init__(config, predicts_data=algorithm.endswith("++"))
        if config.variance_type in ("learned", "learned_range"):
            raise CheckpointError(
                f"variance_type={config.variance_type!r}: outputs that hold a variance are not supported"
            )
        if not self.predicts_data and config.final_sigmas_type == "zero":
            raise CheckpointError(
                f"DPMSolverMultistepConfig: algorithm_type={algorithm!r} cannot reach final_sigmas_type='zero'; "
                "use 'sigma_min'"
            )
        if algorithm == "sde-dpmsolver" and config.solver_order == 3:
            raise CheckpointError("DPMSolverMultistepConfig: sde-dpmsolver has no third order; use solver_order 1 or 2")
        self._heun = config.solver_type == "heun"
        self.has_noise = algorithm.startswith("sde")
        if config.noise_max_step is not None and not self.has_noise:
            raise CheckpointError(
                f"DPMSolverMultistepConfig: noise_max_step={config.noise_max_step:g} needs an SDE, but "
                f"algorithm_type={algorithm!r} adds no noise; leave it out, or use 'sde-{algorithm}'"
            )
        self.delays = (config.solver_order - 1,) if config.solver_order > 1 else ()

    def without_noise(self) -> DPMSolverMultistep:
        algorithm = self.config.algorithm_type.removeprefix("sde-")
        return DPMSolverMultistep(replace(self.config, algorithm_type=algorithm, noise_max_step=None))

    def _grid(
        self, num_inference_steps: int | None, sigmas: Numbers | None, timesteps: Numbers | None, mu: float | None
    ) -> Grid:
        """`timesteps`: integers of the training range, for configurations without a spacing of their own."""
        c = self.config
        self._refuse(sigmas=sigmas)
        if mu is not None and not (c.use_dynamic_shifting and c.time_shift_type == "exponential"):
            raise RequestError(
                f"mu={mu} was given, but this configuration has use_dynamic_shifting={c.use_dynamic_shifting}, "
                f"time_shift_type={c.time_shift_type!r}"
            )
        if timesteps is not None and (self._conversion or c.use_lu_lambdas or c.use_flow_sigmas):
            raise RequestError("timesteps were given, but this configuration spaces its own sigmas; leave them out")
        steps = count_steps(num_inference_steps, timesteps)
        rising = self._train_sigmas
        log_sigmas = np.log(rising)
        if self._conversion is not None or c.use_lu_lambdas:
            if c.use_karras_sigmas or not c.use_lu_lambdas:
                assert self._conversion is not None
                levels = spacing.CONVERSIONS[self._conversion](rising[0].item(), rising[-1].item(), steps)
            else:
                first, last = log_sigmas[-1].item(), log_sigmas[0].item()
                levels = np.exp(first + np.linspace(0, 1, steps) * (last - first))
            fed = np.array([spacing.sigma_to_timestep(level, log_sigmas) for level in levels])
            if (c.use_karras_sigmas or c.use_lu_lambdas) and c.beta_schedule != "squaredcos_cap_v2":
                fed = fed.round()
        elif c.use_flow_sigmas:
            shift = np.exp(mu) if mu is not None else c.flow_shift
            levels = 1.0 - np.linspace(1, 1 / c.num_train_timesteps, steps + 1)
            levels = np.flip(spacing.shifted(shift, levels))[:-1].copy()
            fed = levels * c.num_train_timesteps
        else:
            fed = self._clipped(steps) if timesteps is None else spacing.as_array(timesteps).astype(np.int64)
            levels = self._interpolated(fed)
        return self._assembled(levels, fed, self._train_sigma_min() if c.final_sigmas_type == "sigma_min" else 0.0)

    def _clipped(self, steps: int) -> np.ndarray:
        """Spaced timesteps whose λ is at least lambda_min_clipped."""
        alpha, sigma = torch.sqrt(self._alphas_bar), torch.sqrt(1 - self._alphas_bar)
        rising = torch.flip(torch.log(alpha) - torch.log(sigma), [0])
        clipped = int(torch.searchsorted(rising, self.config.lambda_min_clipped))
        return self._spaced(steps, self.config.num_train_timesteps - clipped)

    def _order(self, grid: Grid, index: int, begin: int) -> int:
        c, steps = self.config, len(grid)
        few = c.lower_order_final and steps < 15
        if index == steps - 1 and (c.euler_at_final or few or c.final_sigmas_type == "zero"):
            return 1
        order: int = min(c.solver_order, index - begin + 1)
        return min(order, 2) if index == steps - 2 and few else order

    def _rows(self, grid: Grid, index: int, begin: int, eta: float, terms: Terms) -> Sequence[torch.Tensor]:
        past = terms.lines[0] if terms.lines else ()
        outputs = (self._converted(grid, index, terms), *past)
        order = self._order(grid, index, begin)
        here, there = self._level(grid, index), self._level(grid, index + 1)
        h = there.lam - here.lam
        keep, drive, linear, quadratic, spread = self._weights(grid, index, h)
        following = keep * terms.sample + drive * outputs[0]
        if order > 1:
            first, second = self._derivatives(grid, index, order, h, outputs)
            if order == 2 and not self._heun:
                linear = 0.5 * drive
            following = following + linear * first
            if second is not None:
                following = following + quadratic * second
        if self.has_noise:
            following = following + spread * terms.noise
        return [following, outputs[0]] if self.delays else [following]

    def _weights(self, grid: Grid, index: int, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What multiplies the sample, the newest output, its first and second derivative in λ, and the noise.

        The ODE form integrates e^(-h) (x0 predictions) or e^h (noise predictions) against a Taylor series of
        the output; the SDE form doubles the exponent and puts back the variance that this removes.
        """
        here, there = self._level(grid, index), self._level(grid, index + 1)
        none = torch.zeros_like(h)
        longest = self.config.noise_max_step
        noisy = self.has_noise and (longest is None or float(h) <= longest)
        if self.predicts_data and not noisy:
            decay, alpha = torch.exp(-h) - 1.0, there.alpha
            linear, quadratic = alpha * (decay / h + 1.0), -(alpha * ((decay + h) / h**2 - 0.5))
            return there.sigma / here.sigma, -(alpha * decay), linear, quadratic, none
        if self.predicts_data:
            gain, alpha = 1.0 - torch.exp(-2.0 * h), there.alpha
            linear = alpha * (gain / (-2.0 * h) + 1.0)
            quadratic = alpha * ((gain - 2.0 * h) / (2.0 * h) ** 2 - 0.5)
            keep = there.sigma / here.sigma * torch.exp(-h)
            return keep, alpha * gain, linear, quadratic, there.sigma * torch.sqrt(gain)
        growth, sigma = torch.exp(h) - 1.0, there.sigma
        linear, quadratic = -(sigma * (growth / h - 1.0)), -(sigma * ((growth - h) / h**2 - 0.5))
        keep, drive = there.alpha / here.alpha, -(sigma * growth)
        if not noisy:
            return keep, drive, linear, quadratic, none
        return keep, 2.0 * drive, 2.0 * linear, none, sigma * torch.sqrt(torch.exp(2 * h) - 1.0)

    def _derivatives(
        self, grid: Grid, index: int, order: int, h: torch.Tensor, outputs: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """First and (order 3) second divided differences of the outputs, in units of h."""
        lams = [self._level(grid, index - a).lam for a in range(order)]
        r0 = (lams[0] - lams[1]) / h
        newest = (1.0 / r0) * (outputs[0] - outputs[1])
        if order == 2:
            return newest, None
        r1 = (lams[1] - lams[2]) / h
        older = (1.0 / r1) * (outputs[1] - outputs[2])
        second = (1.0 / (r0 + r1)) * (newest - older)
        return newest + (r0 / (r0 + r1)) * (newest - older), second
