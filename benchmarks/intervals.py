"""What samples from a noisy machine tell: medians with bootstrap intervals, and ratios where those are narrow enough.

Percentile bootstrap: Efron, "Bootstrap methods: another look at the jackknife", 1979. The draws come from a fixed
seed, so the same samples always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 5  # samples that an interval needs
WIDEST = 0.10  # relative width of a median's interval; and of a ratio's, whatever it claims
SHARE_OF_CLAIM = 0.5  # a larger claim may be vaguer: "20 to 30 times" is worth saying, "0.9 to 1.3 times" is not

Better = Literal["faster", "slower", "same", "unclear"]


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % confidence interval; None where samples are too few."""

    median: float
    low: float | None
    high: float | None

    @property
    def width(self) -> float:
        """Of the interval, as a share of the median; infinite where there is none."""
        if self.low is None or self.high is None or not self.median:
            return math.inf
        return (self.high - self.low) / self.median

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def median_of(samples: Sequence[float]) -> Estimate:
    """The median of independent samples."""
    values = np.asarray(samples, dtype=np.float64)
    return _estimate(float(np.median(values)), [values], lambda resampled: np.median(resampled[0], axis=-1))


def vague(samples: Sequence[float]) -> bool:
    """Whether their median's interval is wider than a tenth of it."""
    return median_of(samples).width > WIDEST


def paired_ratio(base: Sequence[float], new: Sequence[float]) -> Estimate:
    """How many times faster `new` is than `base`, of seconds measured in the same rounds.

    The median of the rounds' ratios: what disturbs a round disturbs both, and leaves their ratio.
    """
    if len(base) != len(new):
        raise ValueError(f"{len(base)} and {len(new)} samples: wanted one of each in every round")
    return median_of(np.divide(base, new).tolist())


def unpaired_ratio(base: Sequence[float], new: Sequence[float]) -> Estimate:
    """The same for seconds from two runs, which share no rounds: the ratio of the medians."""
    before, after = np.asarray(base, dtype=np.float64), np.asarray(new, dtype=np.float64)
    return _estimate(
        float(np.median(before) / np.median(after)),
        [before, after],
        lambda resampled: np.median(resampled[0], axis=-1) / np.median(resampled[1], axis=-1),
    )


def worth_saying(ratio: Estimate) -> bool:
    """Whether the interval is narrow enough for what the ratio claims; compared on a logarithmic scale."""
    if ratio.low is None or ratio.high is None or ratio.low <= 0:
        return False
    allowed = max(math.log1p(WIDEST), SHARE_OF_CLAIM * abs(math.log(ratio.median)))
    return math.log(ratio.high / ratio.low) <= allowed


def said(ratio: Estimate) -> str:
    """The ratio and its interval as text, or why the samples do not tell."""
    if ratio.low is None or ratio.high is None:
        return f"too few samples (wanted {FEWEST})"
    if not worth_saying(ratio):
        return f"too noisy ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def verdict(ratio: Estimate, tolerance: float) -> Better:
    """Of a speed-up: faster or slower if the whole interval is beyond `tolerance`, same if all of it is within."""
    if ratio.low is None or ratio.high is None:
        return "unclear"
    limit = 1 + tolerance
    if ratio.low > limit:
        return "faster"
    if ratio.high < 1 / limit:
        return "slower"
    return "same" if ratio.low >= 1 / limit and ratio.high <= limit else "unclear"


def interval(samples: Sequence[float], statistic: Callable[..., Any]) -> tuple[float | None, float | None]:
    """The 95 % interval of `statistic`, a function of numpy's that takes an axis; None where samples are too few."""
    values = np.asarray(samples, dtype=np.float64)
    estimate = _estimate(0.0, [values], lambda resampled: statistic(resampled[0], axis=-1))
    return estimate.low, estimate.high


def _estimate(
    value: float, groups: list[np.ndarray[Any, Any]], statistic: Callable[[list[np.ndarray[Any, Any]]], Any]
) -> Estimate:
    """Percentiles of `statistic` over resamples of every group, [resamples, samples] each."""
    if min(len(group) for group in groups) < FEWEST:
        return Estimate(value, None, None)
    draw = np.random.default_rng(0)
    resampled = [group[draw.integers(0, len(group), (RESAMPLES, len(group)))] for group in groups]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(statistic(resampled), [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
