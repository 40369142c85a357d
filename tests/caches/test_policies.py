"""Which steps a cache computes: schedules by hand, and MagCache's beside diffusers' own."""

import pytest
import torch

from kinema import caches
from kinema.caches.policies import Easy, Hold, Mag, Rate
from kinema.errors import RequestError
from kinema.request.caching import cache_configs

# of 20 steps of the sample model's sampler: shift 3
LEVELS = tuple(3 * s / (1 + 2 * s) for s in (1 - i / 20 for i in range(20)))
DIT = {
    **{"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8},
    **{"freq_dim": 16, "ffn_dim": 16, "num_layers": 3, "rope_max_seq_len": 32},
}


def computed(policy):
    nothing, steps = torch.zeros(1, dtype=torch.float32), []
    for step in range(len(LEVELS)):
        if policy.skips(step, nothing):
            policy.skipped(step, nothing)
        else:
            policy.computed(step, nothing, nothing, nothing)
            steps.append(step)
    return steps


def clip(value, samples=1):
    return torch.full((samples, 1, 1, 2, 2), float(value), dtype=torch.float32)


def test_hold_computes_the_noisy_steps_and_then_every_few():
    assert [round(level, 2) for level in LEVELS[5:8]] == [0.9, 0.87, 0.85]
    config = caches.HoldCacheConfig(retention_sigma=0.86, max_skip_steps=3)
    assert computed(Hold(config, LEVELS)) == [*range(7), 10, 14, 18]


def test_hold_computes_the_first_step_at_or_below_each_sigma():
    config = caches.HoldCacheConfig(sigmas=[1.0, 0.9, LEVELS[10], 0.3, 0.26, 0.0])
    # 0.3 and 0.26 fall before the same step; nothing is at or below 0
    assert computed(Hold(config, LEVELS)) == [0, 5, 10, 18]


@pytest.mark.parametrize("threshold", [0.023, 0.123, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@torch.no_grad()
def test_mag_cache_computes_the_steps_that_diffusers_computes(steps, threshold):
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
    ratios = [1.0, 1.05, 0.99, 0.97, 1.02, 0.99, 0.98, 0.99, 0.96, 0.9, 0.8, 0.7]
    theirs = diffusers.WanTransformer3DModel(**DIT).eval()
    middle, ran, now = theirs.blocks[1], [], [0]
    forward = middle.forward
    middle.forward = lambda *given, **named: (ran.append(now[0]), forward(*given, **named))[1]
    config = diffusers.MagCacheConfig(threshold=threshold, mag_ratios=list(ratios), num_inference_steps=steps)
    theirs.enable_cache(config)
    for now[0] in range(steps):
        latents = torch.randn(1, 4, 1, 2, 2, dtype=torch.float32)
        with theirs.cache_context("cond"):
            theirs(latents, torch.ones(1, dtype=torch.int64), torch.randn(1, 3, 8, dtype=torch.float32))
    ours = Mag(caches.MagCacheConfig(ratios, threshold=threshold), steps)
    assert [step for step in range(steps) if not ours.skips(step, latents)] == ran


def test_rate_holds_while_the_clean_clip_changes_little():
    policy = Rate(caches.RateCacheConfig(threshold=0.3, retention_sigma=0.9, max_skip_steps=4), LEVELS)
    for step, value in ((4, 1.0), (5, 1.25)):
        assert not policy.skips(step, clip(0)), "nothing is known yet" if step == 4 else "one clip has no rate"
        policy.computed(step, clip(0), clip(0), clip(value))
    # a fifth a step: one step stays below 0.3, two do not
    assert policy.skips(6, clip(0))
    policy.skipped(6, clip(0))
    assert not policy.skips(7, clip(0))
    policy.computed(7, clip(0), clip(0), clip(1.25))
    for step in range(8, 12):  # it did not change at all: as many as are allowed
        assert policy.skips(step, clip(0))
        policy.skipped(step, clip(0))
    assert not policy.skips(12, clip(0))


def test_rate_waits_for_the_levels_below_retention():
    policy = Rate(caches.RateCacheConfig(retention_sigma=0.5), LEVELS)
    for step in range(2):
        policy.computed(step, clip(0), clip(0), clip(1))
    assert [step for step in range(20) if policy.skips(step, clip(0))] == [i for i, s in enumerate(LEVELS) if s <= 0.5]


def test_the_sample_that_changes_most_decides():
    policy = Rate(caches.RateCacheConfig(retention_sigma=1.0), LEVELS)
    still, moved = torch.cat([clip(1), clip(1)]), torch.cat([clip(1), clip(2)])
    policy.computed(1, still, still, still)
    policy.computed(2, still, still, moved)
    assert not policy.skips(3, still)


def test_easy_cache_adds_up_changes_of_the_output():
    policy = Easy(caches.EasyCacheConfig(threshold=0.5, retention_steps=2))
    policy.computed(0, clip(0), clip(1), clip(1))
    policy.computed(1, clip(1), clip(3), clip(2))  # k = 2
    # x moves by 0.5: v by 1 of 3
    assert policy.skips(2, clip(1.5))
    policy.skipped(2, clip(1.5))
    assert policy.skips(3, clip(1.7)) and not policy.skips(3, clip(1.8))
    assert not Easy(caches.EasyCacheConfig()).skips(0, clip(0)), "nothing is known"


def test_a_policy_that_forgets_computes_twice():
    policy = Rate(caches.RateCacheConfig(retention_sigma=1.0), LEVELS)
    for step in (1, 2):
        policy.computed(step, clip(1), clip(1), clip(1))
    assert policy.skips(3, clip(1))
    policy.forget()
    assert not policy.skips(3, clip(1)) and policy.tensors == []


@pytest.mark.parametrize(
    "config",
    [
        lambda: caches.HoldCacheConfig(retention_sigma=1.5),
        lambda: caches.HoldCacheConfig(max_skip_steps=0),
        lambda: caches.HoldCacheConfig(sigmas=[]),
        lambda: caches.HoldCacheConfig(sigmas=[0.5, float("nan")]),
        lambda: caches.HoldCacheConfig(sigmas="0.5"),
        lambda: caches.RateCacheConfig(threshold=-1),
        lambda: caches.RateCacheConfig(max_skip_steps=2.5),
        lambda: caches.MagCacheConfig([]),
        lambda: caches.MagCacheConfig([1.0, "x"]),
        lambda: caches.EasyCacheConfig(retention_steps=True),
        lambda: caches.GuidanceEndConfig(sigma=None),
    ],
)
def test_what_no_cache_can_be_asked_for(config):
    with pytest.raises(RequestError, match="wanted"):
        config()


def test_at_most_one_of_each_kind():
    hold, rate, end = caches.HoldCacheConfig(), caches.RateCacheConfig(), caches.GuidanceEndConfig()
    assert cache_configs("cache", hold) == (hold,) and cache_configs("cache", [end, rate]) == (end, rate)
    for wrong in ([hold, rate], [end, end], ["hold"], "hold", 3, [None]):
        with pytest.raises(RequestError, match=r"cache .*wanted"):
            cache_configs("cache", wrong)


def test_what_ruins_clips_is_refused_with_the_figure():
    diffusers = pytest.importorskip("diffusers", reason="its configurations are refused")
    with pytest.raises(RequestError, match=r"15\.4 dB"):
        cache_configs("cache", diffusers.TaylorSeerCacheConfig())
