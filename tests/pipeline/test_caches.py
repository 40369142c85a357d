"""Caches in a pipeline: what is held, what is dropped, and that a request's cache is its own."""

import pytest
import torch

from kinema import caches
from kinema.errors import RequestError
from kinema.request import GenerationRequest

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 8, "output_type": "latent"}
HOLD = caches.HoldCacheConfig(retention_sigma=0.95, max_skip_steps=2)
END = caches.GuidanceEndConfig(sigma=0.8)


def request(cache=None, seed=1, prompt="a red circle", **more):
    return GenerationRequest(**{**CALL, "prompt": prompt, "seed": seed, "cache": cache, **more})


def run(pipe, *asked):
    """The latents of requests that run step by step side by side."""
    states = [pipe.prepare(each) for each in asked]
    while not all(state.done for state in states):
        pipe.step(states)
    return states


@pytest.fixture
def pipe(models):
    return models("t2v").ours


def test_with_nothing_held_the_clip_is_the_same_bytes(pipe):
    (exact,) = run(pipe, request())
    for idle in (caches.HoldCacheConfig(retention_sigma=0.0), caches.RateCacheConfig(threshold=0.0)):
        (cached,) = run(pipe, request(idle))
        assert torch.equal(cached.latents, exact.latents)
        assert set(cached.cache.use.steps) == {"guided"} and cached.cache.use.saved == 0
    assert exact.cache is None and exact.stats.summary()["cache"] is None


def test_a_held_step_keeps_the_clean_clip(pipe, monkeypatch):
    """Latents of a run by hand: a forward where the schedule says so, else the last x0."""
    from kinema import schedulers

    (cached,) = run(pipe, request(HOLD))
    assert cached.cache.use.steps.count("held") >= 3
    state = pipe.prepare(request())
    core, grid, clean = state.schedule.core, state.schedule.grid, None
    transformer = pipe.components.transformer("transformer")
    for step, kind in enumerate(cached.cache.use.steps):
        sigma, latents = float(grid.sigmas[step]), state.latents
        if kind == "guided":
            (rows,) = state.rows(transformer, "transformer")
            cond, uncond = transformer(*rows.inputs(), rows.context).chunk(2)
            output = uncond + state.guidance_scale * (cond - uncond)
            clean = latents - sigma * output
        else:
            output = (latents - clean) / sigma
        state.latents = schedulers.step(pipe.ops, state.schedule, latents, output)
    assert core.class_name.startswith("UniPC")
    torch.testing.assert_close(cached.latents, state.latents, rtol=1e-4, atol=1e-4)


def test_guidance_ends_at_its_level(pipe):
    (exact,), (ended,) = run(pipe, request()), run(pipe, request(END))
    levels = ended.cache.levels
    assert ended.cache.use.steps == ["guided" if level > 0.8 else "conditional" for level in levels]
    assert 0 < ended.cache.use.steps.count("guided") < len(levels)
    assert not torch.equal(ended.latents, exact.latents)
    assert ended.stats.forwards == ended.cache.use.row_forwards < exact.stats.forwards
    # the same as a caller that turns guidance off there
    state = pipe.prepare(request())
    while not state.done:
        if levels[state.step_index] <= 0.8:
            state.guidance_scale = 1.0
        pipe.step([state])
    assert torch.equal(state.latents, ended.latents)


@pytest.mark.parametrize("kind", ["t2v", "two_experts", "ti2v"])
def test_side_by_side_as_alone(models, kind):
    pipe = models(kind).ours
    size = {"height": 64, "width": 64} if kind == "ti2v" else {}
    asked = [
        request(None, 1, **size),
        request(HOLD, 2, **size),
        request([caches.RateCacheConfig(threshold=2.0), END], 3, "a blue square", **size),
        request(caches.EasyCacheConfig(threshold=5.0, retention_steps=2), 4, **size),
        request(caches.MagCacheConfig([1.0, 0.99], retention_ratio=0.3), 5, guidance_scale=1.0, **size),
        request(END, 6, "a green digit", **size),
    ]
    alone = [run(pipe, each)[0] for each in asked]
    together = run(pipe, *asked)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.latents, other.latents)
    assert all("held" in state.cache.use.steps for state in alone[1:5])


def test_experts_do_not_share_what_is_held(models):
    pipe = models("two_experts").ours
    (state,) = run(pipe, request(caches.HoldCacheConfig(retention_sigma=1.0, max_skip_steps=50)))
    trained = state.schedule.core.config.num_train_timesteps
    experts = [pipe.model.expert(t, trained) for t in state.schedule.timesteps]
    switch = experts.index(pipe.model.experts[1])
    ran = [step for step, kind in enumerate(state.cache.use.steps) if kind != "held"]
    assert ran == [0, switch, len(experts) - 1]


@pytest.mark.parametrize("name", ["latents", "text"])
def test_what_is_replaced_is_not_held_on_to(pipe, name):
    longest = caches.HoldCacheConfig(retention_sigma=1.0, max_skip_steps=50)
    state = pipe.prepare(request(longest))
    for _ in range(3):
        pipe.step([state])
    assert state.cache.use.steps == ["guided", "held", "held"]
    setattr(state, name, getattr(state, name) + 0.5)
    pipe.step([state])
    assert state.cache.use.steps[-1] == "guided"
    pipe.step([state])
    assert state.cache.use.steps[-1] == "held"


def test_what_it_says_of_itself(pipe):
    (state,) = run(pipe, request([HOLD, END], num_videos_per_prompt=2))
    said = state.measured().summary()["cache"]
    kinds = {"guided": 2, "conditional": 1, "held": 0}
    assert said["exact"] == 2 * 2 * 8 and len(said["steps"]) == 8
    assert said["row_forwards"] == 2 * sum(kinds[kind] for kind in said["steps"])
    assert said["saved"] == pytest.approx(1 - said["row_forwards"] / said["exact"]) and said["seconds_saved"] > 0
    assert said["nbytes"] == state.latents.nbytes


def test_a_request_that_goes_leaves_nothing(pipe):
    import gc
    from weakref import ref

    state = pipe.prepare(request(HOLD))
    for _ in range(2):
        pipe.step([state])
    cache = ref(state.cache)
    state.interrupt = True
    del state
    gc.collect()
    assert cache() is None


def test_what_is_no_cache_is_refused(pipe):
    with pytest.raises(RequestError, match=r"cache is .*wanted"):
        request("fast")
