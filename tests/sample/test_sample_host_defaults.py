"""Training draws, renders and learns the same numbers whatever the host application has made torch's defaults."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from kinema.checkpoints import Weights
from kinema.families.wan.vae.autoencoder import WanVAE
from kinema.sample.digits import digit_field
from kinema.sample.distance import features
from kinema.sample.shapes import shape_field
from kinema.sample.train_dit import train_dit
from kinema.sample.train_vae import initial_vae, train_vae, training_clips


def neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


training = neighbour("test_sample_training")
DEFAULTS = ("bfloat16", "float64", "meta")


def learnt(folder):
    """Both phases' parameters after a step or two, the second resumed, and what they were drawn from."""
    recipe, world, ops, quiet = training.tiny_recipe(), training.WORLD, training.OPS, training.quiet
    for made in (digit_field, shape_field):
        made.cache_clear()
    clips = training_clips(recipe, world, 0)
    first = train_vae(recipe, world, ops, folder / "vae.safetensors", quiet, stop_after=0.0)
    vae = WanVAE(recipe.vae, Weights(initial_vae(recipe.vae, 0)), ops)
    for _ in range(2):
        second = train_dit(recipe, world, ops, vae, folder, quiet, stop_after=0.0)
    with torch.no_grad():
        drawn = [clips, features(clips.repeat(1, 1, 2, 1, 1))]
        return [*drawn, *first.parameters.values(), *second.parameters.values()]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("default", DEFAULTS)
def test_training_learns_the_same_bits(tmp_path, hosts_default, wanted, default):
    with hosts_default(default):
        got = learnt(tmp_path)
    assert all(torch.equal(ours, before) for ours, before in zip(got, wanted, strict=True))
