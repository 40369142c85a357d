"""What one request's run of a scheduler carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kinema.errors import RequestError
from kinema.ops.common.transfer import to_device
from kinema.schedulers.core import Grid, SchedulerCore
from kinema.schedulers.noise import Generators

MAX_TABLES = 4  # of one run: guidance on, off, and another


@dataclass
class SchedulerState:
    """It belongs to one request; the core is shared.

    tables: [n - begin, M, K] float64, the core's coefficients of every step of this run.
    history: the core's delay lines, newest entry first; None where the run has not written yet. The tensors
    [B, ...] fp32 belong to the state and are overwritten by later steps.
    """

    core: SchedulerCore
    grid: Grid
    tables: torch.Tensor
    begin: int
    index: int
    eta: float = 0.0
    generator: Generators | None = None
    history: list[list[torch.Tensor | None]] = field(default_factory=list)
    _guided: dict[tuple[float, torch.device], torch.Tensor] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.index >= len(self.grid)

    @property
    def timestep(self) -> torch.Tensor:
        """What the model is fed before the next step: 0-dim, in the grid's dtype, on the CPU."""
        return self.grid.timesteps[self.index]

    @property
    def timesteps(self) -> torch.Tensor:
        """The timesteps of the whole run [n - begin]."""
        return self.grid.timesteps[self.begin :]

    def coefficients(self, guidance: float, device: torch.device) -> torch.Tensor:
        """The next step's [1, M, K + 1] fp32 on `device`, with columns sample, cond, uncond, …

        uncond + g·(cond - uncond) gives cond the share g of the output's coefficients and uncond 1 - g. All steps are
        sent at once, and again for another guidance.
        """
        if self.done:
            raise RequestError(f"all {len(self.grid)} steps of this run are done; start a new one")
        table = self._guided.get((guidance, device))
        if table is None:
            sample, output, rest = self.tables[..., :1], self.tables[..., 1:2], self.tables[..., 2:]
            guided = torch.cat([sample, guidance * output, (1.0 - guidance) * output, rest], dim=-1)
            if len(self._guided) >= MAX_TABLES:
                self._guided.clear()
            table = self._guided[guidance, device] = to_device(guided.to(torch.float32), device)
        step = self.index - self.begin
        return table[step : step + 1]


def start(
    core: SchedulerCore,
    grid: Grid,
    *,
    begin: int = 0,
    strength: float | None = None,
    eta: float = 0.0,
    generator: Generators | None = None,
) -> SchedulerState:
    """A run of `core` over `grid` from step `begin`. Every coefficient is computed, and refused, here.

    strength: of video-to-video, instead of `begin`. eta: DDIM's share of fresh noise. generator: of each step's noise.
    """
    if strength is not None:
        begin = begin_index(len(grid), strength)
    if not 0 <= begin < len(grid):
        raise RequestError(f"begin={begin}: wanted a step of the grid, 0 to {len(grid) - 1}")
    tables = torch.stack([core.coefficients(grid, i, begin=begin, eta=eta) for i in range(begin, len(grid))])
    history: list[list[torch.Tensor | None]] = [[None] * depth for depth in core.delays]
    return SchedulerState(core, grid, tables, begin, begin, eta, generator, history)


def begin_index(num_inference_steps: int, strength: float) -> int:
    """Where video-to-video begins: the last int(steps · strength) steps run, as in diffusers' get_timesteps."""
    if not 0.0 <= strength <= 1.0:
        raise RequestError(f"strength={strength}: wanted a number from 0 (keep the video) to 1 (ignore it)")
    steps = int(num_inference_steps * strength)
    if steps < 1:
        raise RequestError(
            f"strength={strength} of {num_inference_steps} steps leaves no step to run; "
            f"wanted a strength of at least {1 / num_inference_steps:.4g}, or more steps"
        )
    return num_inference_steps - steps
