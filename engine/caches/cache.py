"""What one request holds from step to step instead of computing it again, and what it decides by that.

    decision = cache.plan(step, latents, expert)         before the forward
    Run:  cache.settle(…)                                what the forward gave
    Skip: output = cache.held(…)                         what it would give if the clean clip were still the same

The solver is fed a held step's output as any other: it stays on its own grid and keeps its history and its noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kinema.caches.policies import Hold, Mag, Policy, policy_of
from kinema.request.caching import CacheConfig, GuidanceEndConfig, cache_configs
from kinema.request.stats import CacheUse
from kinema.schedulers.clean import combined, guided_output, noise_levels
from kinema.schedulers.core import Grid, SchedulerCore
from kinema.schedulers.step import StepOps


@dataclass(frozen=True)
class Skip:
    """No forward."""


@dataclass(frozen=True)
class Run:
    """A forward of the conditional branch, and of the unconditional one if `guided`."""

    guided: bool = True


Decision = Skip | Run


@dataclass(eq=False)
class Cache:
    """It belongs to one request: nothing of it lives on a model, and it knows no family.

    levels: the noise level of each step of the run. maps: (a, b) such that a·latents + b·output is x0, step by step.
    """

    levels: tuple[float, ...]
    maps: tuple[tuple[float, float], ...]
    policy: Policy | None = None
    guidance_end: float = -1.0
    use: CacheUse = field(default_factory=CacheUse)
    _kept: torch.Tensor | None = None
    _expert: str = ""

    @staticmethod
    def of(asked: CacheConfig | Sequence[CacheConfig], core: SchedulerCore, grid: Grid, begin: int) -> Cache:
        """The cache of a run that begins at step `begin` of the grid."""
        configs = cache_configs("cache", asked)
        levels = noise_levels(core, grid, begin)
        ends = [config.sigma for config in configs if isinstance(config, GuidanceEndConfig)]
        policies = [
            policy_of(config, levels, len(levels)) for config in configs if not isinstance(config, GuidanceEndConfig)
        ]
        maps = tuple(core.clean(grid, index) for index in range(begin, len(grid)))
        return Cache(levels, maps, policies[0] if policies else None, ends[0] if ends else -1.0)

    def plan(self, step: int, latents: torch.Tensor, expert: str) -> Decision:
        """What step `step` of the run needs. Changes nothing. The first and the last step are always computed."""
        inner = 0 < step < len(self.levels) - 1 and self._kept is not None and expert == self._expert
        if inner and self.policy is not None and self._holds(step) and self.policy.skips(step, latents):
            return Skip()
        return Run(guided=self.levels[step] > self.guidance_end)

    def held(self, ops: StepOps, step: int, latents: torch.Tensor) -> torch.Tensor:
        """The guided output of a step that is skipped, [B, C, T, h, w] fp32."""
        assert self.policy is not None and self._kept is not None
        self.policy.skipped(step, latents)
        self.use.steps.append("held")
        a, b = self._map(step)
        return combined(ops, [latents, self._kept], [-a / b, 1.0 / b])

    def settle(
        self,
        ops: StepOps,
        step: int,
        expert: str,
        latents: torch.Tensor,
        cond: torch.Tensor,
        uncond: torch.Tensor | None,
        guidance: float,
    ) -> None:
        """Take in what a step's forward gave, before the solver moves on; [B, C, T, h, w] each."""
        self.use.steps.append("conditional" if uncond is None else "guided")
        if self.policy is None or not self._holds(step):
            self._kept = None
            return
        if expert != self._expert:
            self.policy.forget()
        output = guided_output(ops, cond, uncond, guidance)
        self._kept, self._expert = combined(ops, [latents, output], self._map(step)), expert
        self.policy.computed(step, latents, output, self._kept)
        self.use.nbytes = max(self.use.nbytes, self.nbytes)

    def forget(self) -> None:
        """Hold nothing: the latents or the prompt are others now."""
        self._kept = None
        if self.policy is not None:
            self.policy.forget()

    @property
    def nbytes(self) -> int:
        kept = [] if self._kept is None else [self._kept]
        held = {id(t): t for t in (*kept, *(self.policy.tensors if self.policy is not None else []))}
        return sum(int(t.nbytes) for t in held.values())

    def _map(self, step: int) -> tuple[float, float]:
        """(a, b) of what is kept as a·latents + b·output."""
        return self.maps[step] if self.policy is not None and self.policy.holds_clip else (-1.0, 1.0)

    def _holds(self, step: int) -> bool:
        """Whether the output can be told from what is kept: not where the latents are noise alone, or a clip."""
        a, b = self._map(step)
        return math.isfinite(a) and math.isfinite(b) and b != 0.0


def foreseen(
    asked: CacheConfig | Sequence[CacheConfig], core: SchedulerCore, grid: Grid, begin: int, branches: int
) -> float:
    """The share of row-forwards that a run will make, as far as it is known: a policy that measures may make all.

    branches: of a step without a cache.
    """
    cache = Cache.of(asked, core, grid, begin)
    schedule = cache.policy if isinstance(cache.policy, (Hold, Mag)) else None
    nothing, made, last = torch.empty(0, dtype=torch.float32, device="cpu"), 0, len(cache.levels) - 1
    for step, level in enumerate(cache.levels):
        if schedule is not None and 0 < step < last and schedule.skips(step, nothing):
            schedule.skipped(step, nothing)
            continue
        if schedule is not None:
            schedule.computed(step, nothing, nothing, nothing)
        made += branches if level > cache.guidance_end else 1
    return made / (branches * len(cache.levels))
