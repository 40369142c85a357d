"""What is asked of caches: frozen configurations. All are off by default, and every one changes the clip.

latents_held: how many tensors of the latents' size each holds at most, in fp32, the output of a step among them. Noise
levels are σ as flow matching has it, from 1 (noise alone) to 0 (the clip); of other samplers σ / (α + σ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from kinema.errors import RequestError, shown
from kinema.fields.values import check_fields, number, whole

MAX_SKIPPED = 1000


def _numbers(name: str, value: Any, *, low: float, high: float, least: int = 1) -> tuple[float, ...]:
    listed = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(listed, str) or not isinstance(listed, Sequence) or len(listed) < least:
        raise RequestError(f"{name} is {shown(value)}: wanted a list of numbers")
    return tuple(number(f"one of {name}", one, low, high) for one in listed)


_share = partial(number, low=0.0, high=1.0)
_threshold = partial(number, low=0.0)
_skipped = partial(whole, high=MAX_SKIPPED)
_sigmas = partial(_numbers, low=0.0, high=1.0)
_ratios = partial(_numbers, low=0.0, high=1e6)


@dataclass(frozen=True)
class HoldCacheConfig:
    """Hold the clean clip x0 where a schedule says so: a step that is not computed takes the last computed x0.

    Steps above the noise level `retention_sigma` are computed; below it at most `max_skip_steps` in a row are not.
    sigmas: instead of both, computed is the first step at or below each of these levels. The last step always is.
    """

    latents_held: ClassVar[int] = 2

    retention_sigma: float = 0.85
    max_skip_steps: int = 4
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, {"retention_sigma": _share, "max_skip_steps": _skipped, "sigmas": _sigmas})


@dataclass(frozen=True)
class RateCacheConfig:
    """Hold x0 while it changes little, without calibration.

    Between computed steps x0 is taken to change at the rate ‖Δx0‖ / ‖x0‖ per step of the last two that were computed;
    steps are not computed while that adds up to less than `threshold`, nor more than `max_skip_steps` in a row.
    """

    latents_held: ClassVar[int] = 3

    threshold: float = 0.3
    retention_sigma: float = 0.94
    max_skip_steps: int = 4

    def __post_init__(self) -> None:
        check_fields(self, {"threshold": _threshold, "retention_sigma": _share, "max_skip_steps": _skipped})


@dataclass(frozen=True)
class MagCacheConfig:
    """MagCache (arXiv 2506.09045) with diffusers' names: its choice of the steps that are computed; x0 is held.

    mag_ratios: of the magnitudes of the residuals of consecutive steps, for this checkpoint; of another number of steps
    they are resampled, as in diffusers. The first `retention_ratio` of the steps are computed.
    """

    latents_held: ClassVar[int] = 2

    mag_ratios: tuple[float, ...]
    threshold: float = 0.06
    max_skip_steps: int = 3
    retention_ratio: float = 0.2

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "mag_ratios": _ratios,
                "threshold": _threshold,
                "max_skip_steps": _skipped,
                "retention_ratio": _share,
            },
        )


@dataclass(frozen=True)
class EasyCacheConfig:
    """EasyCache (arXiv 2507.02860): hold the difference of output and latents, v - x, while the output changes little.

    A change of x is taken to change v in proportion, as between the last two computed steps; the changes relative to
    v add up to less than `threshold` before a step is computed. The first `retention_steps` are.
    """

    latents_held: ClassVar[int] = 4

    threshold: float = 0.05
    retention_steps: int = 10

    def __post_init__(self) -> None:
        check_fields(self, {"threshold": _threshold, "retention_steps": whole})


@dataclass(frozen=True)
class GuidanceEndConfig:
    """No unconditional branch at and below the noise level `sigma`: guidance is decided above it."""

    latents_held: ClassVar[int] = 0

    sigma: float = 0.8

    def __post_init__(self) -> None:
        check_fields(self, {"sigma": _share})


StepCacheConfig = HoldCacheConfig | RateCacheConfig | MagCacheConfig | EasyCacheConfig
CacheConfig = StepCacheConfig | GuidanceEndConfig

# What others offer, and what it did to the clips of the sample model (20 steps, stochastic sampler, 32 prompts).
REFUSED = {
    "TaylorSeerCacheConfig": "forecasts follow each step's fresh noise: 15.4 dB where holding x0 gives 29.5",
    "FasterCacheConfig": "a reused difference of the branches gives 19.7 dB and 11 of 32 clips right, exact 30",
    "PyramidAttentionBroadcastConfig": "it keeps every attention's output, gigabytes for the gain of a held step",
    "FirstBlockCacheConfig": "it decides inside a forward, which then cannot be replayed, and gains nothing over x0",
    "SeaCacheConfig": "its filtered input is dominated by each step's fresh noise, as the latents are",
}


def cache_configs(name: str, value: Any) -> tuple[CacheConfig, ...]:
    """The configurations: at most one step cache and one end of guidance. One alone need not be in a list."""
    given = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for one in given:
        title = type(one).__name__
        if title in REFUSED and not isinstance(one, CacheConfig):
            raise RequestError(f"{name} is a {title}: {REFUSED[title]}; wanted {_WANTED}")
        if not isinstance(one, CacheConfig):
            raise RequestError(f"{name} is {shown(value)}: wanted {_WANTED}")
    steps = [type(one).__name__ for one in given if isinstance(one, StepCacheConfig)]
    if len(steps) > 1 or len(given) - len(steps) > 1:
        raise RequestError(
            f"{name} has {len(steps)} step caches and {len(given) - len(steps)} ends of guidance: "
            "wanted at most one of each"
        )
    return given


_WANTED = "HoldCacheConfig, RateCacheConfig, MagCacheConfig, EasyCacheConfig or GuidanceEndConfig of kinema.caches"
