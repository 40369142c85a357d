"""Medians, intervals and ratios of samples whose truth is known."""

import math

import numpy as np
import pytest

from kinema.bench.intervals import (
    Estimate,
    median_of,
    paired_ratio,
    said,
    unpaired_ratio,
    vague,
    verdict,
    worth_saying,
)


def noisy(seed, count, median=1.0, spread=0.1):
    """Log-normal times: always longer than nothing, and skewed as those of a busy machine."""
    return (median * np.random.default_rng(seed).lognormal(0, spread, count)).tolist()


def test_a_constant_has_no_width():
    assert median_of([2.0] * 7) == Estimate(2.0, 2.0, 2.0)


def test_the_median_and_an_interval_around_it():
    estimate = median_of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert estimate.median == 3.0, "an outlier does not move it"
    assert 1.0 <= estimate.low < 3.0 < estimate.high <= 100.0


def test_a_median_is_vague_until_there_are_enough_samples_for_its_noise():
    samples = noisy(3, 200)
    assert vague(samples[:3]) and vague(samples[:8]) and not vague(samples)


def test_the_same_samples_give_the_same_interval():
    assert median_of(noisy(3, 20)) == median_of(noisy(3, 20))


def test_intervals_hold_the_truth_as_often_as_they_claim():
    inside = sum(e.low <= 1.0 <= e.high for e in (median_of(noisy(seed, 21)) for seed in range(200)))
    assert 0.90 <= inside / 200 <= 0.99


def test_more_samples_narrow_the_interval():
    few, many = median_of(noisy(1, 10)), median_of(noisy(1, 1000))
    assert many.width < few.width / 3


def test_few_samples_have_a_median_and_no_interval():
    assert median_of([1.0, 3.0]) == Estimate(2.0, None, None)
    assert median_of([1.0] * 4).width == math.inf
    assert said(median_of([1.0] * 4)) == "too few samples (wanted 5)"


def test_a_disturbance_of_whole_rounds_cancels_in_a_paired_ratio():
    load = np.random.default_rng(0).uniform(1, 4, 20)
    base, new = (3.0 * load).tolist(), (2.0 * load).tolist()
    paired = paired_ratio(base, new)
    assert paired.median == pytest.approx(1.5) and paired.width < 1e-9
    assert unpaired_ratio(base, new).width > 0.3, "two runs do not share their rounds"


def test_a_ratio_above_one_is_faster():
    assert paired_ratio([2.0] * 5, [1.0] * 5).median == 2.0
    assert unpaired_ratio([1.0] * 9, [2.0] * 5).median == 0.5


def test_ratios_need_samples_of_the_same_rounds():
    with pytest.raises(ValueError, match="5 and 4 samples"):
        paired_ratio([1.0] * 5, [1.0] * 4)


@pytest.mark.parametrize(
    ("low", "median", "high", "worth"),
    [
        (1.21, 1.25, 1.29, True),
        (1.1, 1.2, 1.3, False),  # a tenth and more, for a claim of a fifth
        (0.97, 1.0, 1.03, True),
        (0.9, 1.0, 1.1, False),
        (20.0, 25.0, 30.0, True),  # vague, and yet beyond doubt
        (1 / 30, 1 / 25, 1 / 20, True),
        (0.5, 4.0, 30.0, False),
    ],
)
def test_a_ratio_is_said_only_if_its_interval_is_worth_it(low, median, high, worth):
    estimate = Estimate(median, low, high)
    assert worth_saying(estimate) is worth
    assert said(estimate).startswith(f"{median:.2f}x" if worth else "too noisy")


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (1.06, 1.2, "faster"),
        (0.8, 0.94, "slower"),
        (0.97, 1.03, "same"),
        (0.9, 1.0, "unclear"),
        (1.0, 1.2, "unclear"),
        (None, None, "unclear"),
    ],
)
def test_a_verdict_is_of_the_whole_interval(low, high, found):
    assert verdict(Estimate(1.0, low, high), 0.05) == found
