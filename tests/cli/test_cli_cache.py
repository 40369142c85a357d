"""--cache: what is held is what the options say, the closing lines say what it saved, or one line says why not."""

from __future__ import annotations

import json

import numpy as np
import pytest

import kinema
from kinema import caches
from kinema.estimate import runs

CLIP = ("--height", 32, "--width", 48, "--num-frames", 5, "--steps", 8, "--seed", 3)
CALL = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 8, "seed": 3}

CHOICES = {
    "hold": ("hold:retention_sigma=1,max_skip_steps=2", caches.HoldCacheConfig(1.0, 2)),
    "sigmas": ("hold:sigmas=1/0.8/0.5", caches.HoldCacheConfig(sigmas=(1.0, 0.8, 0.5))),
    "rate": ("rate:threshold=5,retention_sigma=1", caches.RateCacheConfig(5.0, 1.0)),
    "mag": ("mag:mag_ratios=1/0.99,retention_ratio=0.3", caches.MagCacheConfig((1.0, 0.99), retention_ratio=0.3)),
    "easy": ("easy:threshold=5,retention_steps=2", caches.EasyCacheConfig(5.0, 2)),
    "guidance end": ("guidance-end:sigma=0.7", caches.GuidanceEndConfig(0.7)),
}


@pytest.mark.parametrize(("option", "config"), CHOICES.values(), ids=CHOICES.keys())
def test_the_cache_is_chosen(cli, tiny, out, option, config):
    result = cli("generate", "a red circle", "-m", tiny, "-o", out / "a.npy", *CLIP, "--cache", option, "--json")
    assert result.code == 0, result.err
    said = json.loads(result.out)["cache"]
    pipe = kinema.VideoPipeline.from_pretrained(tiny)
    wanted = pipe("a red circle", **CALL, cache=config)
    assert said["steps"] == wanted.stats.cache.steps and said["saved"] > 0
    assert np.array_equal(np.load(out / "a.npy"), wanted.videos[0].frames)


def test_one_of_each_kind_and_the_closing_line(cli, tiny, out):
    cache = ("--cache", "hold:retention_sigma=1", "--cache", "guidance-end")
    result = cli("generate", "a red circle", "-m", tiny, "-o", out / "a.npy", *CLIP, *cache)
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.strip().startswith("cache")]
    assert "held" in line and "of 16 row-forwards" in line and "s saved" in line


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (("--cache", "fast"), "wanted one of hold, rate"),
        (("--cache", "hold:sigma=0.5"), "retention_sigma, max_skip_steps, sigmas"),
        (("--cache", "hold:retention_sigma=much"), "'much' is not a number"),
        (("--cache", "hold:retention_sigma=3"), "of 0 to 1"),
        (("--cache", "mag"), "mag_ratios"),
        (("--cache", "hold", "--cache", "rate"), "at most one of each"),
    ],
)
def test_what_is_refused(cli, tiny, out, options, phrase):
    cli("generate", "x", "-m", tiny, "-o", out / "a.npy", *CLIP, *options).assert_refused(1, phrase)


def test_what_a_run_took_is_not_taken_for_a_whole_one(tiny, tmp_path, monkeypatch):
    """What is remembered of a run that held steps is the work that it did."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path))
    pipe = kinema.VideoPipeline.from_pretrained(tiny)
    config = caches.HoldCacheConfig(retention_sigma=1.0, max_skip_steps=1)
    held = pipe.complete(kinema.GenerationRequest(prompt="x", **CALL, cache=config))
    state = pipe.prepare(held)
    pipe.run(state)
    assert state.cache.use.steps.count("held") == 3
    state.stats.seconds = {"load": 1.0, "text": 1.0, "denoise": 5.0, "decode": 1.0}
    pipe.expected_time(held).remember(state.stats)
    whole = pipe.complete(kinema.GenerationRequest(prompt="x", **CALL))
    (run,) = [run for run in runs.read() if run.stage == "denoise"]
    assert run.work == pytest.approx(pipe.expected_time(whole).work["denoise"] * 5 / 8)
    assert run.work == pytest.approx(pipe.expected_time(held).work["denoise"])
