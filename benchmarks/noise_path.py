"""The noise of a run of many steps, summed to the steps of a shorter one: both then follow the same random path.

A step of DPM-Solver++ as an SDE adds σ_end·√(1 − e^(−2h))·n, where h is its length in λ = log(α/σ). Over two steps in a
row that is what one step adds whose noise is the sum of theirs, each times e^(−(λ_end − λ))·√(1 − e^(−2h)), at unit
variance again. Put differently, the noises are the increments of one Brownian motion over e^(2λ) = (α/σ)², divided by
the roots of their lengths; so levels between those of the long run have values too, by a Brownian bridge.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from kinema.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.schedulers import Grid, SchedulerCore

    Draw = Callable[[], torch.Tensor]


class NoisePath:
    """times: ascending, one more than there are noises (standard normal, of one shape). draw: more such noise."""

    def __init__(self, times: Sequence[float], noises: Sequence[torch.Tensor], draw: Draw) -> None:
        self._times = list(times)
        self._values = [torch.zeros_like(noises[0], dtype=torch.float64)]
        for (start, end), noise in zip(pairwise(times), noises, strict=True):
            self._values.append(self._values[-1] + math.sqrt(end - start) * noise.double())
        self._draw = draw

    def noise(self, start: float, end: float) -> torch.Tensor:
        """Standard normal: the path's increment over these times, scaled."""
        return (self._at(end) - self._at(start)) / math.sqrt(end - start)

    def _at(self, time: float) -> torch.Tensor:
        """The path there; drawn, and remembered, where it is not known yet."""
        after = bisect_left(self._times, time)
        if after == 0:  # the path begins with the run
            return self._values[0]
        if after < len(self._times) and self._times[after] == time:
            return self._values[after]
        left, value = self._times[after - 1], self._values[after - 1]
        spread = time - left
        if after < len(self._times):
            right = self._times[after]
            value = value + (time - left) / (right - left) * (self._values[after] - value)
            spread *= (right - time) / (right - left)
        value = value + math.sqrt(spread) * self._draw().double()
        self._times.insert(after, time)
        self._values.insert(after, value)
        return value


def times_of(core: SchedulerCore, grid: Grid) -> list[float]:
    """(α/σ)² before each step and, unless it is infinite, after the last one."""
    levels = [core.noising(grid, i) for i in range(len(grid) + 1)]
    return [(alpha / sigma) ** 2 for alpha, sigma in levels if sigma > 0]


def coupled_noises(core: SchedulerCore, long: Grid, short: Grid, draw: Draw) -> list[torch.Tensor]:
    """The noise of each step of the short run, from what `draw` gives to the steps of the long one, in their order.

    Steps that end without noise have none and are left out: their noise is multiplied by zero.
    """
    if not has_path(core):
        raise UnsupportedError(f"{core.class_name} with this configuration has no noise path: wanted sde-dpmsolver++")
    times = times_of(core, long)
    drawn = [draw() for _ in range(len(long))]
    path = NoisePath(times, drawn[: len(times) - 1], draw)
    wanted = times_of(core, short)
    return [path.noise(start, end) for start, end in pairwise(wanted)]


def has_path(core: SchedulerCore) -> bool:
    """Whether the sampler's noise is such a path."""
    return core.has_noise and getattr(core.config, "algorithm_type", None) == "sde-dpmsolver++"
