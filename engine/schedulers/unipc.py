"""UniPCMultistep: a predictor of order p and a corrector of order p + 1 (arXiv 2302.04867)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from kinema.errors import CheckpointError, RequestError
from kinema.fields.config import Length, Range
from kinema.schedulers import spacing
from kinema.schedulers.core import Grid, Numbers, Terms, count_steps
from kinema.schedulers.multistep import Level, MultistepConfig, MultistepCore


@dataclass(frozen=True)
class UniPCMultistepConfig(MultistepConfig):
    predict_x0: bool = True
    # the other solvers' names mean the default one, as in diffusers: configurations are passed between classes
    solver_type: Literal["bh1", "bh2", "midpoint", "heun", "logrho"] = "bh2"
    disable_corrector: Annotated[tuple[int, ...], Range(-100_000, 100_000), Length(0, 10_000)] = ()
    solver_p: None = None
    sigma_min: Annotated[float, Range(0, 1e6)] | None = None
    sigma_max: Annotated[float, Range(0, 1e6)] | None = None
    shift_terminal: spacing.ShiftTerminal | None = None


class UniPCMultistep(MultistepCore):
    """diffusers' UniPCMultistepScheduler.

    Two delay lines: the last (corrected) sample, and the last solver_order converted outputs. Outputs are
    converted with the uncorrected sample; the corrector runs at the order that the previous step chose.
    """

    class_name = "UniPCMultistepScheduler"
    config_class = UniPCMultistepConfig

    def __init__(self, config: UniPCMultistepConfig) -> None:
        super().__init__(config, predicts_data=config.predict_x0)
        if config.shift_terminal is not None and not config.use_flow_sigmas:
            raise CheckpointError("UniPCMultistepConfig: shift_terminal needs use_flow_sigmas=true")
        self._bh1 = config.solver_type == "bh1"
        self.delays = (1, config.solver_order)

    def _grid(
        self, num_inference_steps: int | None, sigmas: Numbers | None, timesteps: Numbers | None, mu: float | None
    ) -> Grid:
        """`sigmas` (with use_flow_sigmas only) are levels before the shift."""
        c = self.config
        self._refuse(timesteps=timesteps)
        if c.use_dynamic_shifting == (mu is None):
            raise RequestError(f"use_dynamic_shifting={c.use_dynamic_shifting}, but mu={mu}")
        if sigmas is not None and not c.use_flow_sigmas:
            raise RequestError("sigmas were given, but this configuration has use_flow_sigmas=false")
        steps = count_steps(num_inference_steps, sigmas)
        levels = None if sigmas is None else spacing.as_array(sigmas)
        if self._conversion is not None:
            return self._converted_grid(steps, self._train_sigmas if levels is None else levels)
        if c.use_flow_sigmas:
            return self._flow_grid(steps, levels, mu)
        spaced = self._spaced(steps)
        last = self._train_sigma_min() if c.final_sigmas_type == "sigma_min" else 0.0
        return self._assembled(self._interpolated(spaced), spaced, last)

    def _flow_grid(self, steps: int, levels: np.ndarray | None, mu: float | None) -> Grid:
        c = self.config
        if levels is None:
            levels = np.linspace(1, 1 / c.num_train_timesteps, steps + 1)[:-1]
        if mu is not None:
            levels = spacing.dynamically_shifted(c.time_shift_type, mu, levels)
        else:
            levels = spacing.shifted(c.flow_shift, levels)
        if c.shift_terminal:
            levels = spacing.stretched_to(c.shift_terminal, levels)
        if np.fabs(levels[0] - 1) < 1e-6:
            levels[0] -= 1e-6  # log(1 - σ) stays finite
        return self._assembled(levels, levels * c.num_train_timesteps, self._final(levels))

    def _converted_grid(self, steps: int, levels: np.ndarray) -> Grid:
        """Karras, exponential or beta spacing between the ends of `levels`, which rise."""
        c = self.config
        assert self._conversion is not None
        log_sigmas = np.log(levels)
        low = c.sigma_min if c.sigma_min is not None else levels[0].item()
        high = c.sigma_max if c.sigma_max is not None else levels[-1].item()
        sigmas = spacing.CONVERSIONS[self._conversion](low, high, steps)
        if c.use_karras_sigmas and c.use_flow_sigmas:
            sigmas = sigmas / (sigmas + 1)
            timesteps = sigmas * c.num_train_timesteps
        else:
            timesteps = np.array([spacing.sigma_to_timestep(sigma, log_sigmas) for sigma in sigmas])
            if c.use_karras_sigmas:
                timesteps = timesteps.round()
        return self._assembled(sigmas, timesteps, self._final(sigmas))

    def _final(self, sigmas: np.ndarray) -> float:
        return float(sigmas[-1]) if self.config.final_sigmas_type == "sigma_min" else 0.0

    def result_dtype(self, sample: torch.dtype, model_output: torch.dtype) -> torch.dtype:
        return sample

    def _order(self, grid: Grid, index: int, begin: int) -> int:
        """The predictor's order at step `index`: limited by the history and, at the end, by the remaining steps."""
        order: int = self.config.solver_order
        if self.config.lower_order_final:
            order = min(order, len(grid) - index)
        return min(order, index - begin + 1)

    def _rows(self, grid: Grid, index: int, begin: int, eta: float, terms: Terms) -> Sequence[torch.Tensor]:
        (last_sample,), past = terms.lines
        converted = self._converted(grid, index, terms)
        sample = terms.sample
        if index > begin and index - 1 not in self.config.disable_corrector:
            order = self._order(grid, index - 1, begin)
            sample = self._corrected(grid, index, order, last_sample, past, converted)
        following = self._predicted(grid, index, self._order(grid, index, begin), sample, (converted, *past))
        return [following, sample, converted]

    def _predicted(
        self, grid: Grid, index: int, order: int, sample: torch.Tensor, outputs: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """UniP-order from step `index` to the next; outputs[a] is the converted output of a steps ago."""
        here, there = self._level(grid, index), self._level(grid, index + 1)
        update = _Update(self, here, there, [self._level(grid, index - a).lam for a in range(1, order)])
        differences = update.differences(outputs)
        following = update.transported(sample, outputs[0])
        if order == 2:  # the paper's shortcut
            return following - update.weight * (0.5 * differences[0])
        if order > 2:
            rhos = _solved([row[:-1] for row in update.powers[:-1]], update.moments[:-1])
            return following - update.weight * sum(rho * d for rho, d in zip(rhos, differences, strict=True))
        return following

    def _corrected(
        self,
        grid: Grid,
        index: int,
        order: int,
        last_sample: torch.Tensor,
        past: Sequence[torch.Tensor],
        converted: torch.Tensor,
    ) -> torch.Tensor:
        """UniC-order: the sample at step `index` once more, now that the model's output there is known."""
        here, there = self._level(grid, index - 1), self._level(grid, index)
        update = _Update(self, here, there, [self._level(grid, index - 1 - a).lam for a in range(1, order)])
        differences = [*update.differences(past), converted - past[0]]
        rhos = (
            [torch.tensor(0.5, dtype=torch.float32, device="cpu")]
            if order == 1
            else _solved(update.powers, update.moments)
        )
        residual = sum(rho * d for rho, d in zip(rhos, differences, strict=True))
        return update.transported(last_sample, past[0]) - update.weight * residual


class _Update:
    """The B(h) update between two levels: its exact linear part, and the system for the weights of the rest.

    earlier: λ of the older points. With h the step in λ, negated when the outputs are x0 predictions:
    powers[i][k] = r_k^i for the points' relative distances r_k and 1 for the end point;
    moments[i] = (i + 1)!·φ_{i+2}(h)·h / B(h), φ_k as in the paper; B(h) = h (bh1) or e^h - 1 (bh2).
    """

    def __init__(self, core: UniPCMultistep, here: Level, there: Level, earlier: Sequence[torch.Tensor]) -> None:
        step = there.lam - here.lam
        hh = -step if core.predicts_data else step
        growth = torch.expm1(hh)
        base = hh if core._bh1 else growth
        self.distances = [(lam - here.lam) / step for lam in earlier]
        ratios = torch.stack([*self.distances, torch.ones_like(step)])
        self.powers = [torch.pow(ratios, i) for i in range(len(ratios))]
        self.moments: list[torch.Tensor] = []
        phi, factorial = growth / hh - 1, 1
        for i in range(1, len(ratios) + 1):
            self.moments.append(phi * factorial / base)
            factorial *= i + 1
            phi = phi / hh - 1 / factorial
        if core.predicts_data:
            self._keep, scale = there.sigma / here.sigma, there.alpha
        else:
            self._keep, scale = there.alpha / here.alpha, there.sigma
        self._drive = scale * growth
        self.weight = scale * base

    def transported(self, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The solution if the output did not change over the step."""
        return self._keep * sample - self._drive * output

    def differences(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(m_a - m_0) / r_a for the older outputs m_a; outputs[0] is m_0."""
        return [(outputs[a + 1] - outputs[0]) / ratio for a, ratio in enumerate(self.distances)]


def _solved(rows: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The weights as fp32 0-dim tensors; NaN where the system is singular (two equal levels)."""
    solution, info = torch.linalg.solve_ex(torch.stack(list(rows)), torch.stack(list(right)))
    return list(solution if int(info) == 0 else torch.full_like(solution, torch.nan))
