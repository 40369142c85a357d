"""Which steps are computed: policies that see levels and clips, never a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from kinema.request.caching import (
    EasyCacheConfig,
    HoldCacheConfig,
    MagCacheConfig,
    RateCacheConfig,
    StepCacheConfig,
)


class Policy(Protocol):
    """One request's choice of steps; the caller computes the first and the last one whatever is said here.

    holds_clip: the clean clip x0 is what stays; else the difference of output and latents, v - x.
    """

    holds_clip: bool

    def skips(self, step: int, latents: torch.Tensor) -> bool:
        """Whether step `step` of the run can do without a forward. Changes nothing."""
        ...

    def computed(self, step: int, latents: torch.Tensor, output: torch.Tensor, kept: torch.Tensor) -> None:
        """Step `step` gave this guided output for these latents, of which `kept` is kept. [B, C, T, h, w] fp32."""
        ...

    def skipped(self, step: int, latents: torch.Tensor) -> None: ...

    def forget(self) -> None:
        """What is known of former steps is of another clip or another model."""
        ...

    @property
    def tensors(self) -> list[torch.Tensor]: ...


class Hold:
    """Of HoldCacheConfig. levels: the noise level of each step so far."""

    holds_clip = True

    def __init__(self, config: HoldCacheConfig, levels: Sequence[float]) -> None:
        self._config, self._levels, self._held = config, levels, 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return []

    def skips(self, step: int, latents: torch.Tensor) -> bool:
        level, before = self._levels[step], self._levels[step - 1] if step else math.inf
        if self._config.sigmas is not None:
            return not any(level <= sigma < before for sigma in self._config.sigmas)
        return level <= self._config.retention_sigma and self._held < self._config.max_skip_steps

    def computed(self, step: int, latents: torch.Tensor, output: torch.Tensor, kept: torch.Tensor) -> None:
        self._held = 0

    def skipped(self, step: int, latents: torch.Tensor) -> None:
        self._held += 1

    def forget(self) -> None:
        """The schedule stays."""


class Mag:
    """Of MagCacheConfig: the errors |1 - Πγ| since the last computed step add up to at most the threshold."""

    holds_clip = True

    def __init__(self, config: MagCacheConfig, steps: int) -> None:
        scale = (len(config.mag_ratios) - 1) / max(1, steps - 1)
        ratios = [config.mag_ratios[round(i * scale)] for i in range(steps)] if steps > 1 else config.mag_ratios[-1:]
        self._skipped: list[bool] = []
        ratio, error, held = 1.0, 0.0, 0
        for step in range(steps):
            if step >= int(config.retention_ratio * steps + 0.5):
                ratio, held = ratio * ratios[step], held + 1
                error += abs(1.0 - ratio)
            self._skipped.append(step > 0 and 0 < held <= config.max_skip_steps and error <= config.threshold)
            if not self._skipped[-1]:
                ratio, error, held = 1.0, 0.0, 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return []

    def skips(self, step: int, latents: torch.Tensor) -> bool:
        return self._skipped[step]

    def computed(self, step: int, latents: torch.Tensor, output: torch.Tensor, kept: torch.Tensor) -> None:
        """Nothing is measured."""

    def skipped(self, step: int, latents: torch.Tensor) -> None:
        """Nothing is counted."""

    def forget(self) -> None:
        """Nothing is known."""


class Rate:
    """Of RateCacheConfig: skips while the change of x0 since the last computed step is small, as far as it is known.

    Of several samples the one that changes most decides.
    """

    holds_clip = True

    def __init__(self, config: RateCacheConfig, levels: Sequence[float]) -> None:
        self._config, self._levels = config, levels
        self._before: torch.Tensor | None = None
        self._rate: float | None = None
        self._held = 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [] if self._before is None else [self._before]

    def skips(self, step: int, latents: torch.Tensor) -> bool:
        config = self._config
        if self._rate is None or self._levels[step] > config.retention_sigma or self._held >= config.max_skip_steps:
            return False
        return self._rate * (self._held + 1) < config.threshold

    def computed(self, step: int, latents: torch.Tensor, output: torch.Tensor, kept: torch.Tensor) -> None:
        if self._before is not None:
            self._rate = _change(kept, self._before, kept) / (self._held + 1)
        self._before, self._held = kept, 0

    def skipped(self, step: int, latents: torch.Tensor) -> None:
        self._held += 1

    def forget(self) -> None:
        self._before, self._rate, self._held = None, None, 0


class Easy:
    """Of EasyCacheConfig, equations 5 to 8 of the paper: k = ‖Δv‖ / ‖Δx‖ of computed steps; k·‖Δx‖ / ‖v‖ adds up."""

    holds_clip = False

    def __init__(self, config: EasyCacheConfig) -> None:
        self._config = config
        self._latents: torch.Tensor | None = None  # of the step before, computed or not
        self._output: torch.Tensor | None = None  # of the last computed step
        self._ratio: float | None = None
        self._sum = 0.0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self._latents, self._output) if t is not None]

    def skips(self, step: int, latents: torch.Tensor) -> bool:
        return step >= self._config.retention_steps and self._changed(latents) < self._config.threshold

    def computed(self, step: int, latents: torch.Tensor, output: torch.Tensor, kept: torch.Tensor) -> None:
        if self._latents is not None and self._output is not None:
            moved = float((latents - self._latents).abs().mean())
            self._ratio = float((output - self._output).abs().mean()) / moved if moved else None
        self._latents, self._output, self._sum = latents.clone(), output, 0.0

    def skipped(self, step: int, latents: torch.Tensor) -> None:
        self._sum = self._changed(latents)
        self._latents = latents.clone()

    def forget(self) -> None:
        self._latents, self._output, self._ratio, self._sum = None, None, None, 0.0

    def _changed(self, latents: torch.Tensor) -> float:
        if self._latents is None or self._output is None or self._ratio is None:
            return float("inf")
        moved = (latents - self._latents).abs().flatten(1).mean(dim=1) / self._output.abs().flatten(1).mean(dim=1)
        return self._sum + self._ratio * float(moved.max())


def policy_of(config: StepCacheConfig, levels: Sequence[float], steps: int) -> Policy:
    """levels: the noise level of each of the `steps` steps of a run, from 1 to 0; it may still grow."""
    if isinstance(config, HoldCacheConfig):
        return Hold(config, levels)
    if isinstance(config, MagCacheConfig):
        return Mag(config, steps)
    return Rate(config, levels) if isinstance(config, RateCacheConfig) else Easy(config)


def _change(new: torch.Tensor, old: torch.Tensor, base: torch.Tensor) -> float:
    """‖new - old‖ / ‖base‖ of the sample where it is largest."""
    return float(((new - old).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1).clamp_min(1e-12)).max())
