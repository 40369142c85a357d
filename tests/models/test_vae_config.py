"""What a Wan VAE's config.json, clips and tilings must be, and what is said otherwise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from kinema.checkpoints.weights import Weights
from kinema.errors import CheckpointError, RequestError
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import build_ops, plan_ops, target_for
from kinema.vae.feature_cache import FeatureCache
from kinema.vae.posterior import Posterior
from kinema.vae.tiling import Tiling

WAN21 = {
    "_class_name": "AutoencoderKLWan",
    "_diffusers_version": "0.33.1",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}
WAN22 = {
    **WAN21,
    "base_dim": 160,
    "clip_output": False,
    "decoder_base_dim": 256,
    "in_channels": 12,
    "is_residual": True,
    "latents_mean": [0.1] * 48,
    "latents_std": [0.5] * 48,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "z_dim": 48,
}
NULLS = {**WAN21, "decoder_base_dim": None, "patch_size": None, "scale_factor_spatial": None, "latents_mean": None}


@pytest.mark.parametrize("published", [WAN21, WAN22, NULLS], ids=["wan21", "wan22", "nulls"])
def test_published_checkpoints_have_the_listed_tensors(published: dict[str, Any]) -> None:
    config = WanVAEConfig.from_dict(published)
    # diffusers takes a null patch size or decoder width, but no other null
    kept = {key: value for key, value in published.items() if value is not None and not key.startswith("_")}
    kept.pop("clip_output", None)
    with torch.device("meta"):
        theirs = AutoencoderKLWan(**kept)
    assert tensor_shapes(config) == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert config.latents_mean == tuple(theirs.config.latents_mean)
    assert config.latents_std == tuple(theirs.config.latents_std)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim_mult": [1, 2, 4]}, "temperal_downsample has 3 values, wanted 2"),
        ({"temperal_downsample": [True, True, True]}, "halves time more than twice"),
        ({"temperal_downsample": [False, False, True]}, "scale_factor_temporal=4, the layers shrink time by 2"),
        ({"patch_size": 2, "in_channels": 12, "out_channels": 12}, "scale_factor_spatial=8, the layers shrink"),
        ({"patch_size": 2, "scale_factor_spatial": 16}, "in_channels=3 and out_channels=3"),
        ({"patch_size": 0}, "patch_size is 0, wanted a whole number of 1 to 64 or null"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0, wanted a whole number of 1 to 64"),
        ({"base_dim": 0}, "base_dim is 0, wanted a whole number of 2 to 10000"),
        ({"decoder_base_dim": -8}, "decoder_base_dim is -8, wanted a whole number"),
        ({"z_dim": 8}, "latents_mean has 16 values, wanted z_dim=8"),
        ({"latents_std": [1.0] * 15}, "latents_std has 15 values, wanted z_dim=16"),
        ({"attn_scales": [0.5]}, "attn_scales=[0.5]"),
        ({"is_residual": True, "dim_mult": [1, 2, 4, 8]}, "encoder stage 3 cannot average 384 channels into 768"),
        ({"is_residual": True, "dim_mult": [1, 1, 5, 5]}, "decoder stage 2 cannot spread 480 channels over 96"),
        ({"shift_factor": 0.5}, "does not know shift_factor=0.5"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        WanVAEConfig.from_dict(WAN21 | change)


def tiny() -> WanVAE:
    config = WanVAEConfig.from_dict(
        {**WAN22, "base_dim": 8, "decoder_base_dim": 8, "z_dim": 2, "latents_mean": [0.0] * 2, "latents_std": [1.0] * 2}
    )
    weights = {name: torch.full(shape, 0.1) for name, shape in tensor_shapes(config).items()}
    return WanVAE(config, Weights(weights), build_ops(plan_ops(target_for("cpu"))))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 4, 32, 32), "video has 4 frames of 32x32: wanted a multiple of 4 plus 1 frames"),
        ((1, 3, 5, 40, 32), "for example 5 frames of 32x32"),
        ((1, 12, 5, 32, 32), "wanted [B, 3, T, H, W]"),
        ((3, 5, 32, 32), "wanted [B, 3, T, H, W]"),
        ((1, 3, 0, 32, 32), "video is (1, 3, 0, 32, 32)"),
        ((1, 3, 5, 16, 8), "for example 5 frames of 16x16"),
    ],
)
def test_videos_that_cannot_be_encoded_are_refused(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        tiny().encode(torch.zeros(shape))


def test_bad_calls_are_refused() -> None:
    vae = tiny()
    z = torch.zeros(1, 2, 3, 2, 2)
    with pytest.raises(RequestError, match=r"wanted \[B, 2, T, H, W\]"):
        vae.decode(torch.zeros(1, 3, 3, 2, 2))
    with pytest.raises(RequestError, match=re.escape("latents are (1, 2, 8, 8), wanted")):
        vae.decode(torch.zeros(1, 2, 8, 8))
    with pytest.raises(RequestError, match="latents are"):
        vae.decode(z[:, :, :0])
    with pytest.raises(RequestError, match="chunk=0"):
        vae.decode(z, chunk=0)
    with pytest.raises(RequestError, match="chunk=6 must be a multiple of 4"):
        vae.encode(torch.zeros(1, 3, 9, 32, 32), chunk=6)
    with pytest.raises(RequestError, match="starts with one frame alone, got 3"):
        vae.decode_frames(z, FeatureCache())
    with pytest.raises(RequestError, match="uint8"):
        vae.encode(torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8))
    with pytest.raises(RequestError, match="multiples of 16"):
        vae.decode(z, tiling=Tiling(256, 256, 192, 200))


@pytest.mark.parametrize("sizes", [(256, 256, 0, 192), (256, 256, 192, 320), (128, 256, 192, 192), (0, 0, 0, 0)])
def test_tiles_that_do_not_cover_the_frame_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(RequestError, match=r"must be positive and at most|wanted a whole number of at least 1"):
        Tiling(*sizes)


def test_half_precision_latents_are_decoded_in_fp32() -> None:
    vae = tiny()
    frames = vae.decode(torch.ones(1, 2, 2, 2, 2, dtype=torch.bfloat16))
    assert frames.dtype == torch.float32
    assert frames.shape == (1, 3, 5, 32, 32)
    assert torch.equal(frames, vae.decode(torch.ones(1, 2, 2, 2, 2)))


def test_posterior_equals_diffusers_out_to_its_limits() -> None:
    moments = torch.linspace(-60, 60, 2 * 4 * 30).view(1, 8, 5, 3, 2).flip(1)
    theirs, got = DiagonalGaussianDistribution(moments), Posterior.from_moments(moments)
    assert got.logvar.min() == -30
    assert torch.equal(Posterior.from_moments(-moments).logvar.max(), torch.tensor(20.0))
    for name in ("mean", "logvar", "std"):
        assert torch.equal(getattr(got, name), getattr(theirs, name)), name
    assert torch.equal(got.mode(), theirs.mode())
    seeds = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(got.sample(next(seeds)), theirs.sample(next(seeds)))
