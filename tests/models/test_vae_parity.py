"""The Wan VAE against diffusers' AutoencoderKLWan on the same weights; planted mistakes must show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from kinema.checkpoints.weights import Weights
from kinema.families.wan.vae import autoencoder as wan
from kinema.families.wan.vae import decoder, memory, resample
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import Ops, build_ops, plan_ops, target_for
from kinema.vae import tiling
from kinema.vae.feature_cache import FeatureCache
from kinema.vae.tiling import Tiling

TOLERANCE = 1e-5  # the contract is 1e-4; a tighter bound notices smaller mistakes


@dataclass(frozen=True)
class Case:
    """A configuration and a clip: `grid` is the latent frame. quiet: the first activations are about 1e-4."""

    config: dict[str, Any]
    frames: int
    grid: tuple[int, int] = (5, 7)
    batch: int = 1
    quiet: bool = False


RESIDUAL = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
SMALL = {"dim_mult": [1, 2, 2], "scale_factor_spatial": 4}
CASES = {
    "wan21": Case({"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}, frames=9),
    "wan21-two-blocks": Case({"base_dim": 12, "z_dim": 16, "temperal_downsample": [True, True], **SMALL}, frames=13),
    "time-halved-once": Case(
        {
            **{"base_dim": 24, "decoder_base_dim": 16, "z_dim": 4, "dim_mult": [1, 2], "temperal_downsample": [True]},
            **{"scale_factor_spatial": 2, "scale_factor_temporal": 2},
        },
        frames=5,
        batch=2,
    ),
    "time-kept": Case(
        {"base_dim": 9, "z_dim": 3, "temperal_downsample": [False, False], "scale_factor_temporal": 1, **SMALL},
        frames=5,
    ),
    "time-first": Case(
        {"base_dim": 10, "z_dim": 5, "temperal_downsample": [True, False], "scale_factor_temporal": 2, **SMALL},
        frames=9,
        grid=(3, 4),
    ),
    "one-frame": Case({"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}, frames=1),
    "one-position": Case({"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}, frames=5, grid=(1, 1)),
    "wan22": Case({"base_dim": 8, "decoder_base_dim": 12, "z_dim": 6, "num_res_blocks": 1, **RESIDUAL}, frames=9),
    "wan22-time-last": Case(
        {**RESIDUAL, "base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "temperal_downsample": [True, False, False]}
        | {"scale_factor_temporal": 2},
        frames=5,
        grid=(2, 3),
        batch=2,
    ),
    "wan22-no-patches": Case(
        {"base_dim": 8, "z_dim": 4, "is_residual": True, "temperal_downsample": [True, True], **SMALL}, frames=9
    ),
    "quiet": Case({"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}, frames=5, quiet=True),
}

# Overlap on both axes, on one, none at all, and a last tile that lies wholly inside the one before; in latents.
TILINGS = ((3, 4, 2, 3), (4, 8, 3, 8), (2, 3, 2, 3), (4, 6, 2, 3))


@lru_cache(maxsize=1)
def reference_ops() -> Ops:
    return build_ops(plan_ops(target_for("cpu"), "reference"))


@lru_cache(maxsize=16)
def build(name: str) -> tuple[AutoencoderKLWan, WanVAEConfig, dict[str, torch.Tensor]]:
    """diffusers' VAE with weights under which every layer matters, our config, and the weights."""
    case = CASES[name]
    z_dim = case.config["z_dim"]
    generator = torch.Generator().manual_seed(len(name))
    statistics = {
        "latents_mean": torch.randn(z_dim, generator=generator).tolist(),
        "latents_std": (torch.rand(z_dim, generator=generator) + 0.5).tolist(),
    }
    theirs = AutoencoderKLWan(**case.config, **statistics).eval()
    weights = {}
    for key, old in theirs.state_dict().items():
        if key.endswith("gamma"):
            new = torch.rand(old.shape, generator=generator) + 0.5
        elif key.endswith("bias"):
            new = torch.randn(old.shape, generator=generator) * 0.5
        else:
            new = torch.randn(old.shape, generator=generator) * 1.3 / old[0].numel() ** 0.5
        if key.startswith("decoder.conv_out"):
            new *= 0.5  # a clamped pixel hides what is behind it
        if case.quiet and ("conv_in" in key or "decoder.mid_block.resnets.0.conv2" in key):
            new *= 1e-4
        weights[key] = new
    theirs.load_state_dict(weights)
    return theirs, WanVAEConfig.from_dict(dict(theirs.config)), weights


def ours(name: str) -> WanVAE:
    _, config, weights = build(name)
    return WanVAE(config, Weights(weights), reference_ops())


@lru_cache(maxsize=16)
def latents_of(name: str) -> torch.Tensor:
    case, (_, config, _) = CASES[name], build(name)
    frames = 1 + (case.frames - 1) // config.scale_factor_temporal
    return torch.randn(case.batch, config.z_dim, frames, *case.grid, generator=torch.Generator().manual_seed(7))


@lru_cache(maxsize=16)
def video_of(name: str) -> torch.Tensor:
    case, (_, config, _) = CASES[name], build(name)
    size = [n * config.scale_factor_spatial for n in case.grid]
    shape = (case.batch, config.pixel_channels, case.frames, *size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(8)) * 2 - 1


def tiling_of(name: str, tile: tuple[int, int, int, int]) -> Tiling:
    factor = build(name)[1].scale_factor_spatial
    return Tiling(*(n * factor for n in tile))


@lru_cache(maxsize=64)
def truth(name: str, way: str, tile: tuple[int, int, int, int] | None = None) -> torch.Tensor:
    """What diffusers gives: frames of "decode", moments of "encode"."""
    theirs, _, _ = build(name)
    if tile is not None:
        pixels = tiling_of(name, tile)
        theirs.enable_tiling(*pixels.size, *pixels.stride)
    try:
        with torch.no_grad():
            if way == "decode":
                return theirs.decode(latents_of(name)).sample
            return theirs.encode(video_of(name)).latent_dist.parameters
    finally:
        theirs.disable_tiling()


def run(vae: WanVAE, name: str, way: str, tile: tuple[int, int, int, int] | None = None) -> torch.Tensor:
    pixels = tiling_of(name, tile) if tile is not None else None
    with torch.no_grad():
        if way == "decode":
            return vae.decode(latents_of(name), tiling=pixels)
        return vae.encode_moments(video_of(name), tiling=pixels)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|got − wanted| / max|wanted|."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("way", ["decode", "encode"])
@pytest.mark.parametrize("name", CASES)
def test_a_whole_clip_equals_diffusers(name: str, way: str) -> None:
    wanted = truth(name, way)
    if way == "decode":
        assert wanted.std() > 0.1
        assert (wanted.abs() == 1).float().mean() < 0.2
    assert error(run(ours(name), name, way), wanted) <= TOLERANCE


@pytest.mark.parametrize("way", ["decode", "encode"])
@pytest.mark.parametrize("tile", TILINGS)
@pytest.mark.parametrize("name", ["wan21", "time-halved-once", "wan22"])
def test_tiles_equal_diffusers(name: str, tile: tuple[int, int, int, int], way: str) -> None:
    wanted = truth(name, way, tile)
    # an encoder that sees patches may have a single tile, whose size counts patches
    if name.startswith("wan21") or way == "decode":
        assert error(wanted, truth(name, way)) > 0.01
    assert error(run(ours(name), name, way, tile), wanted) <= TOLERANCE


def test_a_clip_that_fits_a_tile_is_not_tiled() -> None:
    assert torch.equal(run(ours("wan21"), "wan21", "decode", (5, 7, 1, 1)), run(ours("wan21"), "wan21", "decode"))
    assert torch.equal(truth("wan21", "decode", (5, 7, 1, 1)), truth("wan21", "decode"))


def test_posterior_equals_diffusers() -> None:
    theirs, _, _ = build("wan21")
    with torch.no_grad():
        wanted = theirs.encode(video_of("wan21")).latent_dist
        got = ours("wan21").encode(video_of("wan21"))
    assert error(got.mean, wanted.mean) <= TOLERANCE
    assert error(got.mode(), wanted.mode()) <= TOLERANCE
    assert error(got.logvar, wanted.logvar) <= TOLERANCE
    sample = got.sample(torch.Generator().manual_seed(3))
    assert error(sample, wanted.sample(torch.Generator().manual_seed(3))) <= TOLERANCE
    assert error(sample, wanted.mode()) > 0.1


def test_normalised_latents_are_those_of_the_pipelines() -> None:
    theirs, config, _ = build("wan21")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (theirs.config.latents_mean, theirs.config.latents_std))
    latents = latents_of("wan21")
    vae = ours("wan21")
    assert error(vae.normalize(latents), (latents - mean) * (1.0 / std)) <= 1e-6
    assert error(vae.denormalize(latents), latents / (1.0 / std) + mean) <= 1e-6
    assert config.latents_mean != config.latents_std


@pytest.mark.parametrize("name", ["wan21", "time-halved-once", "wan22"])
def test_chunks_of_any_size_give_the_same_clip(name: str) -> None:
    vae = ours(name)
    factor = vae.config.scale_factor_temporal
    with torch.no_grad():
        whole = vae.decode(latents_of(name), chunk=1)
        moments = vae.encode_moments(video_of(name), chunk=factor)
        assert error(vae.decode(latents_of(name)), whole) <= 1e-5
        for chunk in (2, None):
            assert error(vae.decode(latents_of(name), chunk=chunk), whole) <= 1e-5
            sizes = None if chunk is None else chunk * factor
            assert error(vae.encode_moments(video_of(name), chunk=sizes), moments) <= 1e-5
        parts = list(vae.decode_chunks(latents_of(name), chunk=1))
    assert [part.shape[2] for part in parts] == [1] + [factor] * (latents_of(name).shape[2] - 1)
    assert torch.equal(torch.cat(parts, dim=2), whole)


def test_the_smaller_the_pictures_the_more_of_them_are_a_chunk() -> None:
    """Of as many frames as make a map of the last stage of 8 MB; and a frame of 480p is larger."""
    config = WanVAEConfig(base_dim=16)
    sizes = [(1, 8, 8), (1, 16, 16), (2, 16, 16), (1, 17, 16), (1, 60, 104)]
    assert [memory.latents_at_once(config, *size) for size in sizes] == [8, 2, 1, 1, 1]
    vae = ours("wan21")
    z = latents_of("wan21")
    with torch.no_grad():
        assert [part.shape[2] for part in vae.decode_chunks(z)] == [1, video_of("wan21").shape[2] - 1]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_large_frames_go_through_the_late_stages_in_turn(
    monkeypatch: pytest.MonkeyPatch, name: str, frames: int, backend: str
) -> None:
    """The native kernels write their maps over one another besides."""
    seen: list[int] = []
    finish = decoder.Decoder._finish

    def finished(self: decoder.Decoder, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        seen.append(x.shape[2])
        return finish(self, x, cache)

    monkeypatch.setattr(decoder, "frames_at_once", lambda frame_bytes, native: frames)
    monkeypatch.setattr(decoder.Decoder, "_finish", finished)
    monkeypatch.setattr(wan, "smaller_whole", lambda *size: False)
    _, config, weights = build(name)
    vae = WanVAE(config, Weights(weights), build_ops(plan_ops(target_for("cpu"), backend)))
    z = latents_of(name)
    given = z.clone()
    with torch.no_grad():
        for chunk in (1, None):
            assert error(vae.decode(z, chunk=chunk), truth(name, "decode")) <= TOLERANCE
    assert torch.equal(z, given)
    assert max(seen) <= frames and sum(seen) == 2 * video_of(name).shape[2]


FULL = pytest.mark.full  # the order is the same code for every backend; the native kernels share their maps besides


@pytest.mark.parametrize(
    ("backend", "together"),
    [
        *(("auto", n) for n in (1, 2, 100)),
        ("reference", 2),
        *(pytest.param("reference", n, marks=FULL) for n in (1, 100)),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_a_clip_that_is_smaller_whole_is_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str, together: int
) -> None:
    monkeypatch.setattr(decoder, "frames_at_once", lambda frame_bytes, native: together)
    _, config, weights = build(name)
    vae = WanVAE(config, Weights(weights), build_ops(plan_ops(target_for("cpu"), backend)))
    z = latents_of(name)
    given, decoded, seen = z.clone(), {}, []
    finish = decoder.Decoder.finish_whole
    monkeypatch.setattr(decoder.Decoder, "finish_whole", lambda self, x: seen.append(x.shape[2]) or finish(self, x))
    for whole in (True, False):
        monkeypatch.setattr(wan, "smaller_whole", lambda *size, whole=whole: whole)
        with torch.no_grad():
            for frames in range(1, z.shape[2] + 1):
                decoded[whole, frames] = vae.decode(z[:, :, :frames])
    assert torch.equal(z, given)
    assert seen == [decoded[True, frames].shape[2] for frames in range(1, z.shape[2] + 1)], (
        "whole clips, and only those"
    )
    assert error(decoded[True, z.shape[2]], truth(name, "decode")) <= TOLERANCE
    for frames in range(1, z.shape[2] + 1):
        one, other = decoded[True, frames], decoded[False, frames]
        assert torch.equal(one, other) if backend == "auto" else error(one, other) <= 1e-5


def test_a_short_clip_is_smaller_whole() -> None:
    """Of Wan 2.1's decoder: the past of its late stages is as large as 18 frames of their last map."""
    config = WanVAEConfig()
    assert [wan.smaller_whole(config, frames, 32, 32) for frames in (1, 9, 13, 17, 81)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("tiling", [None, Tiling(32, 32, 24, 24)], ids=["untiled", "tiled"])
def test_behind_the_last_chunk_no_past_is_kept(tiling: Tiling | None) -> None:
    vae, z, cache = ours("wan21"), latents_of("wan21"), FeatureCache()
    held = []
    with torch.no_grad():
        for t in range(z.shape[2]):
            vae.decode_frames(z[:, :, t : t + 1], cache, tiling=tiling, last=t == z.shape[2] - 1)
            held.append(cache.nbytes)
    assert min(held[:-1]) > 0
    assert held[-1] == 0


def test_two_clips_can_take_turns() -> None:
    """Clips of different sizes step through one model, one of them tiled; each keeps its own past."""
    vae, name = ours("wan21"), "wan21"
    wide = latents_of(name)
    small = wide[:1, :, :, :3, :4].flip(2)
    tile = tiling_of(name, (3, 4, 2, 3))
    with torch.no_grad():
        alone = vae.decode(small, chunk=1)
        caches = FeatureCache(), FeatureCache()
        turns: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for t in range(wide.shape[2]):
            turns[0].append(vae.decode_frames(wide[:, :, t : t + 1], caches[0], tiling=tile))
            turns[1].append(vae.decode_frames(small[:, :, t : t + 1], caches[1]))
    assert error(torch.cat(turns[0], dim=2), truth(name, "decode", (3, 4, 2, 3))) <= TOLERANCE
    assert torch.equal(torch.cat(turns[1], dim=2), alone)


def test_double_precision_stays() -> None:
    """An fp64 run is the truth that low precision is measured against."""
    _, config, weights = build("wan21")
    vae = WanVAE(config, Weights({key: value.double() for key, value in weights.items()}), reference_ops())
    with torch.no_grad():
        exact = vae.decode(latents_of("wan21").double())
    assert exact.dtype == torch.float64
    assert error(run(ours("wan21"), "wan21", "decode").double(), exact) <= 1e-5


@pytest.mark.parametrize("chunk", [1, None])
@pytest.mark.parametrize("name", ["time-halved-once", "wan22"])
def test_gradients_reach_every_tensor_and_equal_diffusers(name: str, chunk: int | None) -> None:
    theirs, config, weights = build(name)
    parameters = {key: torch.nn.Parameter(value.clone()) for key, value in weights.items()}
    vae = WanVAE(config, Weights(parameters), reference_ops())
    frames = None if chunk is None else chunk * config.scale_factor_temporal
    generator = torch.Generator().manual_seed(5)
    z, pictures = latents_of(name)[..., :2, :3], video_of(name)
    pictures = pictures[..., : 2 * config.scale_factor_spatial, : 3 * config.scale_factor_spatial]
    moments = vae.encode_moments(pictures, chunk=frames)
    video = vae.decode(z, chunk=chunk)
    pulls = [torch.randn(x.shape, generator=generator) for x in (moments, video)]
    ((moments * pulls[0]).sum() + (video * pulls[1]).sum()).backward()

    theirs.zero_grad()
    wanted = theirs.encode(pictures).latent_dist.parameters, theirs.decode(z).sample
    ((wanted[0] * pulls[0]).sum() + (wanted[1] * pulls[1]).sum()).backward()
    for key, parameter in theirs.named_parameters():
        got = parameters[key].grad
        assert got is not None, key
        assert parameter.grad is not None
        assert error(got, parameter.grad) <= 1e-3, key
    theirs.zero_grad()


# Planted mistakes: each alters our side in one way that a reader might not notice.


@dataclass
class Setup:
    """What a mistake may alter."""

    config: WanVAEConfig
    weights: dict[str, torch.Tensor]
    ops: Ops
    patch: pytest.MonkeyPatch


def alter_conv3d(setup: Setup, alter: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]) -> None:
    """alter(x, keywords) may change the keywords of every conv3d and returns its new x."""
    right = setup.ops.conv3d

    def wrong(x: torch.Tensor, weight: Any, **keywords: Any) -> torch.Tensor:
        x = alter(x, keywords)
        return right(x, weight, **keywords)

    setup.ops = replace(setup.ops, conv3d=wrong)


def silu_missing(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        keywords["activation"] = "none"
        return x

    alter_conv3d(setup, alter)


def channel_scale_missing(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        if keywords["norm"] is not None:
            keywords["norm"] = keywords["norm"] / x.shape[1] ** 0.5
        return x

    alter_conv3d(setup, alter)


def norm_over_space(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        if keywords["norm"] is not None:
            rms = x.square().mean(dim=(1, 3, 4), keepdim=True).sqrt()
            x = F.silu(x / rms * keywords["norm"].view(-1, 1, 1, 1))
            keywords |= {"norm": None, "activation": "none"}
        return x

    alter_conv3d(setup, alter)


def norm_eps_inside(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        if keywords["norm"] is not None:
            rms = (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
            x = F.silu(x / rms * keywords["norm"].view(-1, 1, 1, 1))
            keywords |= {"norm": None, "activation": "none"}
        return x

    alter_conv3d(setup, alter)


def past_forgotten(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        if keywords["cache"] is not None:
            keywords["cache"] = torch.zeros_like(keywords["cache"])
        return x

    alter_conv3d(setup, alter)


def shortcut_missing(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        keywords["residual"] = None
        return x

    alter_conv3d(setup, alter)


def bilinear_upsample(setup: Setup) -> None:
    def alter(x: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        if keywords["upsample"] == 2:
            images = x.transpose(1, 2).flatten(0, 1)
            x = F.interpolate(images, scale_factor=2, mode="bilinear").unflatten(0, (x.shape[0], -1)).transpose(1, 2)
            keywords["upsample"] = 1
        return x

    alter_conv3d(setup, alter)


def clip_starts_with_its_first_frame(setup: Setup) -> None:
    right = FeatureCache.past

    def wrong(self: FeatureCache, name: str, x: torch.Tensor, frames: int) -> torch.Tensor:
        fresh = name not in self._past
        past = right(self, name, x, frames)
        return past.copy_(x[:, :, :1].expand_as(past)) if fresh and "time_conv" not in name else past

    setup.patch.setattr(FeatureCache, "past", wrong)


def alter_padding(padding: tuple[int, int, int, int]) -> Callable[[Setup], None]:
    def apply(setup: Setup) -> None:
        right = setup.ops._pack["pack_conv3d"]

        def wrong(*args: Any, **keywords: Any) -> Any:
            if keywords["stride"] == (1, 2, 2):
                keywords["padding"] = padding
            return right(*args, **keywords)

        setup.ops = replace(setup.ops, _pack={**setup.ops._pack, "pack_conv3d": wrong})

    return apply


def attention_eps(setup: Setup) -> None:
    right = setup.ops.norm_modulate
    setup.ops = replace(setup.ops, norm_modulate=lambda x, **keywords: right(x, **(keywords | {"eps": 1e-6})))


def attention_unscaled(setup: Setup) -> None:
    right = setup.ops.attention
    setup.ops = replace(setup.ops, attention=lambda q, kv: right(q, kv, scale=1.0))


def attention_skipped(setup: Setup) -> None:
    setup.ops = replace(setup.ops, attention=lambda q, kv: (kv.v.squeeze(1),))


def attention_residual_missing(setup: Setup) -> None:
    right = setup.ops.linear
    setup.ops = replace(setup.ops, linear=lambda x, weight, **keywords: right(x, weight))


def queries_and_keys_swapped(setup: Setup) -> None:
    for key in [key for key in setup.weights if "to_qkv" in key]:
        q, k, v = setup.weights[key].chunk(3)
        setup.weights[key] = torch.cat((k, q, v))


def halves_of_channels_one_after_the_other(setup: Setup) -> None:
    setup.patch.setattr(resample, "interleave", lambda x: torch.cat(x.chunk(2, dim=1), dim=2))


def odd_frames_first(setup: Setup) -> None:
    right = resample.interleave
    setup.patch.setattr(resample, "interleave", lambda x: right(torch.cat(x.chunk(2, dim=1)[::-1], dim=1)))


def channels_alternate_in_time(setup: Setup) -> None:
    setup.patch.setattr(resample, "interleave", lambda x: x.unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3))


def second_frame_remembers_the_first(setup: Setup) -> None:
    """Upsampling in time: the second chunk's past must be zeros."""
    right = resample.Upsample.__call__

    def wrong(self: resample.Upsample, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        if self.time_conv is not None and not cache.started:
            self.time_conv.past(x, cache).copy_(x)
        return right(self, x, cache)

    setup.patch.setattr(resample.Upsample, "__call__", wrong)


def halving_forgets_the_first_frame(setup: Setup) -> None:
    def wrong(self: resample.Downsample, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        x = self.conv(x, cache)
        return self.time_conv(x, cache) if self.time_conv is not None and cache.started else x

    setup.patch.setattr(resample.Downsample, "__call__", wrong)


def average_pads_behind(setup: Setup) -> None:
    right = resample.average_down

    def wrong(x: torch.Tensor, channels: int, time: int, space: int) -> torch.Tensor:
        return right(F.pad(x, (0, 0, 0, 0, 0, x.shape[2] % time)), channels, time, space)

    setup.patch.setattr("kinema.families.wan.vae.encoder.average_down", wrong)


def duplicate_keeps_the_earlier_copy(setup: Setup) -> None:
    right = resample.duplicate_up

    def wrong(x: torch.Tensor, channels: int, time: int, space: int) -> torch.Tensor:
        y = right(x, channels, time, space)
        return y.flip(2) if time == 2 and y.shape[2] == 2 else y

    setup.patch.setattr("kinema.families.wan.vae.decoder.duplicate_up", wrong)


def patch_rows_and_columns_swapped(setup: Setup) -> None:
    for name in ("patchify", "unpatchify"):
        right = getattr(resample, name)
        setup.patch.setattr(wan, name, lambda x, patch, right=right: right(x.mT, patch).mT)


def without(conv: str) -> Callable[[Setup], None]:
    """The 1×1×1 convolution as if it were not there."""

    def apply(setup: Setup) -> None:
        weight = setup.weights[f"{conv}.weight"]
        setup.weights[f"{conv}.weight"] = torch.eye(len(weight)).view_as(weight)
        setup.weights[f"{conv}.bias"] = torch.zeros(len(weight))

    return apply


def clamp_missing(setup: Setup) -> None:
    setup.weights["decoder.conv_out.bias"] = setup.weights["decoder.conv_out.bias"].clone()
    right = WanVAE.decode_frames
    setup.patch.setattr(
        WanVAE, "decode_frames", lambda *args, **keywords: right(*args, **(keywords | {"clamp": False}))
    )


def tiles_not_blended(setup: Setup) -> None:
    setup.patch.setattr(tiling, "_blended", lambda before, tile, extent, dim: tile)


def blend_one_position_early(setup: Setup) -> None:
    right = torch.arange
    setup.patch.setattr(tiling.torch, "arange", lambda extent, **keywords: right(extent, **keywords) + 1)


def blend_too_narrow(setup: Setup) -> None:
    right = tiling._blended
    setup.patch.setattr(tiling, "_blended", lambda before, tile, extent, dim: right(before, tile, extent // 2, dim))


def tiles_of_pixels_when_encoding(setup: Setup) -> None:
    right, patch = tiling.TileGrid.of_encoder, setup.config.patch

    def wrong(given: Tiling, scale: int) -> tiling.TileGrid:
        return right(Tiling(*(n // patch for n in (*given.size, *given.stride))), scale)

    setup.patch.setattr(tiling.TileGrid, "of_encoder", wrong)


TILE = (3, 4, 2, 3)
MISTAKES: list[tuple[Callable[[Setup], None], str, str, tuple[int, int, int, int] | None]] = [
    (silu_missing, "wan21", "decode", None),
    (silu_missing, "wan21", "encode", None),
    (channel_scale_missing, "wan21", "decode", None),
    (norm_over_space, "wan21", "encode", None),
    (norm_eps_inside, "quiet", "decode", None),
    (norm_eps_inside, "quiet", "encode", None),
    (past_forgotten, "wan21", "decode", None),
    (past_forgotten, "wan21", "encode", None),
    (clip_starts_with_its_first_frame, "wan21", "decode", None),
    (clip_starts_with_its_first_frame, "wan21", "encode", None),
    (shortcut_missing, "wan21", "decode", None),
    (bilinear_upsample, "wan21", "decode", None),
    (alter_padding((1, 0, 1, 0)), "wan21", "encode", None),
    (alter_padding((0, 1, 1, 0)), "wan21", "encode", None),
    (alter_padding((1, 0, 0, 1)), "wan22", "encode", None),
    (attention_eps, "quiet", "decode", None),
    (attention_unscaled, "wan21", "decode", None),
    (attention_skipped, "wan21", "encode", None),
    (attention_residual_missing, "wan21", "decode", None),
    (queries_and_keys_swapped, "wan21", "encode", None),
    (halves_of_channels_one_after_the_other, "wan21", "decode", None),
    (odd_frames_first, "time-halved-once", "decode", None),
    (channels_alternate_in_time, "wan22", "decode", None),
    (second_frame_remembers_the_first, "wan21", "decode", None),
    (second_frame_remembers_the_first, "wan22", "decode", None),
    (halving_forgets_the_first_frame, "wan21", "encode", None),
    (average_pads_behind, "wan22", "encode", None),
    (duplicate_keeps_the_earlier_copy, "wan22-time-last", "decode", None),
    (patch_rows_and_columns_swapped, "wan22", "decode", None),
    (patch_rows_and_columns_swapped, "wan22", "encode", None),
    (without("post_quant_conv"), "wan21", "decode", None),
    (without("quant_conv"), "wan21", "encode", None),
    (clamp_missing, "wan21-two-blocks", "decode", None),
    (tiles_not_blended, "wan21", "decode", TILE),
    (blend_one_position_early, "wan21", "decode", TILE),
    (blend_one_position_early, "wan21", "encode", TILE),
    (blend_too_narrow, "wan22", "decode", TILE),
    (tiles_of_pixels_when_encoding, "wan22", "encode", TILE),
]


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.mark.parametrize(
    ("mistake", "name", "way", "tile"), MISTAKES, ids=lambda value: getattr(value, "__qualname__", None)
)
def test_planted_mistakes_show(
    mistake: Callable[[Setup], None],
    name: str,
    way: str,
    tile: tuple[int, int, int, int] | None,
    patch: pytest.MonkeyPatch,
) -> None:
    wanted = truth(name, way, tile)
    _, config, weights = build(name)
    setup = Setup(config, dict(weights), reference_ops(), patch)
    mistake(setup)
    vae = WanVAE(setup.config, Weights(setup.weights), setup.ops)
    assert error(run(vae, name, way, tile), wanted) > 1e-3


def test_every_tensor_of_the_checkpoint_is_listed() -> None:
    for name in CASES:
        _, config, weights = build(name)
        assert tensor_shapes(config) == {key: tuple(value.shape) for key, value in weights.items()}
