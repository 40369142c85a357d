"""A cache for callers that run the loop themselves and name each forward: diffusers' pipelines and `cache_context`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from kinema.caches.policies import Policy, policy_of
from kinema.errors import warn
from kinema.request.caching import CacheConfig, GuidanceEndConfig, cache_configs

UNCONDITIONAL = "uncond"


@dataclass(frozen=True)
class Call:
    """Where in a run of flow matching a forward is. name: of its branch. sigma: the noise level, from 1 to 0."""

    name: str
    step: int
    sigma: float
    steps: int


@dataclass
class _Branch:
    """output: of this step, while another branch may take it."""

    policy: Policy | None
    kept: torch.Tensor | None = None
    output: torch.Tensor | None = None

    def holds(self, latents: torch.Tensor) -> bool:
        return self.kept is not None and self.kept.shape == latents.shape

    def held(self, call: Call, latents: torch.Tensor) -> torch.Tensor:
        """The output that leaves what is kept as it is."""
        assert self.policy is not None and self.kept is not None
        self.policy.skipped(call.step, latents)
        return (latents - self.kept) / call.sigma if self.policy.holds_clip else latents + self.kept

    def settle(self, call: Call, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Keep x0 = x - σ·v, or v - x."""
        if self.policy is not None:
            self.kept = latents - call.sigma * output if self.policy.holds_clip else output - latents
            self.policy.computed(call.step, latents, output, self.kept)


@dataclass
class NamedCalls:
    """The branches of one run, each with its own clean clip; the first one decides for all. Step 0 begins anew."""

    configs: tuple[CacheConfig, ...]
    _levels: list[float] = field(default_factory=list)
    _branches: dict[str, _Branch] = field(default_factory=dict)
    _now: Call | None = None
    _skips: bool = False
    _decided: int = -1

    @staticmethod
    def of(asked: object) -> NamedCalls:
        """RequestError for what is no cache."""
        return NamedCalls(cache_configs("cache", asked))

    @contextmanager
    def called(self, name: str, where: dict[str, object]) -> Iterator[None]:
        """Forwards inside belong to branch `name`. where: step_index, sigma and num_inference_steps, if given."""
        step, sigma, steps = (where.get(key) for key in ("step_index", "sigma", "num_inference_steps"))
        if isinstance(step, int) and isinstance(sigma, float) and isinstance(steps, int):
            self._begin(Call(name, step, sigma, steps))
        else:
            warn("the cache is off: this pipeline does not say at which step a forward is (cache_context)")
        try:
            yield
        finally:
            self._now = None

    def __call__(self, forward: Callable[[], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
        """The output for these latents [B, C, T, h, w]: the forward's, or what is held of this branch."""
        call = self._now
        if call is None:
            return forward()
        branch, first = self._branches[call.name], next(iter(self._branches.values()))
        x = latents.float()
        if self._decided != call.step:
            inner = 0 < call.step < call.steps - 1 and call.sigma > 0
            self._skips = inner and branch.policy is not None and branch.policy.skips(call.step, x)
            self._decided = call.step
        unguided = call.name == UNCONDITIONAL and call.sigma <= self._guidance_end and first is not branch
        if self._skips and branch.holds(x):
            output = branch.held(call, x)
        elif unguided and first.output is not None:
            branch.kept, output = first.kept, first.output
        else:
            output = forward()
            branch.settle(call, x, output.float())
        branch.output = output.to(latents.dtype)
        return branch.output

    @property
    def _guidance_end(self) -> float:
        return max((config.sigma for config in self.configs if isinstance(config, GuidanceEndConfig)), default=-1.0)

    def _begin(self, call: Call) -> None:
        if call.step < len(self._levels) - 1 or (call.step == 0 and call.name in self._branches):
            self._levels, self._branches, self._decided = [], {}, -1
        self._levels += [call.sigma] * (call.step + 1 - len(self._levels))
        if call.name not in self._branches:
            steps = [config for config in self.configs if not isinstance(config, GuidanceEndConfig)]
            policies = [policy_of(config, self._levels, call.steps) for config in steps]
            self._branches[call.name] = _Branch(policies[0] if policies else None)
        self._now = call
