"""kinema's transformer in diffusers' pipelines, with a cache by diffusers' verbs: kinema's own frames with it."""

import warnings

import numpy as np
import pytest
import torch

from kinema import caches
from kinema.caches.named_calls import NamedCalls
from kinema.errors import KinemaWarning, RequestError

CALL = {"prompt": "a red circle", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 8}
HOLD = caches.HoldCacheConfig(retention_sigma=0.95, max_skip_steps=2)
MAG = caches.MagCacheConfig([1.0, 0.99], threshold=0.2, retention_ratio=0.3)


class Counted:
    """Counts the forwards of a facade's model."""

    def __init__(self, model):
        self.model, self.forwards = model, 0

    def __call__(self, *given, **named):
        self.forwards += 1
        return self.model(*given, **named)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.fixture
def pair(models):
    """A diffusers pipeline with kinema's transformer in it, and kinema's own of the same folder."""
    model = models("t2v")
    theirs = type(model.theirs)(**model.theirs.components)
    theirs.set_progress_bar_config(disable=True)
    theirs.transformer = type(model.ours.transformer)(Counted(model.ours.transformer.model))
    return theirs, model.ours


def frames(pipe, **call):
    return pipe(**CALL, generator=torch.Generator().manual_seed(5), **call).frames


@pytest.mark.parametrize("config", [HOLD, MAG, caches.GuidanceEndConfig(0.8), (HOLD, caches.GuidanceEndConfig(0.7))])
def test_as_the_pipeline_with_that_cache(pair, config):
    theirs, ours = pair
    exact = frames(theirs)
    assert not theirs.transformer.is_cache_enabled and theirs.transformer.model.forwards == 16
    theirs.transformer.enable_cache(config)
    assert theirs.transformer.is_cache_enabled
    for _ in range(2):  # a run leaves nothing to the next one
        theirs.transformer.model.forwards = 0
        held = frames(theirs)
        wanted = ours(**CALL, generator=torch.Generator().manual_seed(5), cache=config)
        assert theirs.transformer.model.forwards == wanted.stats.cache.row_forwards < 16
        assert float(np.abs(held - wanted.frames).max()) < 1e-4 < float(np.abs(held - exact).max())
    theirs.transformer.disable_cache()
    assert np.array_equal(frames(theirs), exact)


def test_twice_is_refused(pair):
    theirs, _ = pair
    theirs.transformer.enable_cache(HOLD)
    with pytest.raises(ValueError, match="disable_cache"):
        theirs.transformer.enable_cache(HOLD)
    with pytest.raises(RequestError, match="wanted"):
        NamedCalls.of("fast")


def test_pipelines_that_say_no_step_run_every_forward(pair):
    theirs, _ = pair
    theirs.transformer.enable_cache(HOLD)
    transformer, latents = theirs.transformer, torch.randn(1, 4, 2, 4, 4, dtype=torch.float32)
    text, step = torch.randn(1, 5, 24, dtype=torch.float32), torch.tensor([500])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with transformer.cache_context("cond"):
                transformer(latents, step, text)
    assert transformer.model.forwards == 3
    assert [w for w in caught if issubclass(w.category, KinemaWarning) and "the cache is off" in str(w.message)]


def test_the_first_branch_decides_for_both(pair):
    """A rate that measures each branch alone would skip them at different steps."""
    theirs, _ = pair
    theirs.transformer.enable_cache(caches.RateCacheConfig(threshold=0.6, retention_sigma=1.0))
    frames(theirs)
    assert theirs.transformer.model.forwards % 2 == 0 and theirs.transformer.model.forwards < 16
