"""FLOPs of every model: kinema's count against torch's counter, in kinema and in diffusers or transformers.

The flags are the published ones, the sizes are drawn.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig as TheirClipConfig
from transformers import CLIPVisionModel, UMT5EncoderModel
from transformers import UMT5Config as TheirUMT5Config

from kinema.bench import published_configs as published
from kinema.bench.model_counts import counted
from kinema.checkpoints.weights import Weights
from kinema.encoders.clip_vision import CLIPVisionConfig, CLIPVisionEncoder
from kinema.encoders.umt5 import UMT5Config, UMT5Encoder
from kinema.families.wan.config import WanConfig
from kinema.families.wan.flops import decode_flops, encode_flops, forward_flops, text_flops
from kinema.families.wan.transformer import WanTransformer
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig
from kinema.ops import build_ops, plan_ops, target_for
from kinema.pipeline import VideoPipeline

OPS = build_ops(plan_ops(target_for("cpu"), "reference"))
TRANSFORMERS = {
    "t2v 1.3B": published.TRANSFORMER_1_3B,
    "t2v 14B": published.TRANSFORMER_14B,
    "i2v 14B": published.TRANSFORMER_14B_I2V_CLIP,
    "i2v A14B": published.TRANSFORMER_14B_I2V,
    "ti2v 5B": published.TRANSFORMER_5B,
}


@dataclass(frozen=True)
class Pair:
    """The same call in kinema and in the software that the folders come from."""

    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def by_torch(call: Callable[[], Any]) -> int:
    # products that torch's counter does not know are taken apart into such that it does
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def random_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def transformer(kind: str, draw: random.Random, *, per_token: bool = False) -> Pair:
    heads, head_dim = draw.randint(2, 4), draw.choice([16, 24, 32])
    dim = heads * head_dim
    config = {**TRANSFORMERS[kind], "num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": 2}
    config |= {"ffn_dim": draw.randint(2 * dim, 5 * dim), "text_dim": draw.randint(20, 60), "freq_dim": 32}
    if config["image_dim"] is not None:
        config |= {"image_dim": draw.randint(16, 40), "added_kv_proj_dim": dim}
    model = WanTransformer3DModel(**{k: v for k, v in config.items() if k != "_class_name"}).eval()
    weights = {k: v for k, v in random_state(model).items() if "norm_added_q" not in k}
    mine = WanTransformer(WanConfig.from_dict(config), Weights(weights), OPS)
    grid = draw.randint(1, 4), draw.randint(2, 6), draw.randint(2, 6)
    latents = torch.randn(1, config["in_channels"], grid[0], 2 * grid[1], 2 * grid[2])
    text = torch.randn(1, draw.randint(5, 70), config["text_dim"])
    image = torch.randn(1, 17, config["image_dim"]) if config["image_dim"] is not None else None
    time = torch.rand(1, grid[0] * grid[1] * grid[2]) * 999 if per_token else torch.tensor([draw.uniform(1, 999)])
    return Pair(
        lambda: mine(latents, time, mine.encode_context(text, image)),
        lambda: model(latents, time, text, image, return_dict=False),
    )


def vae(config: dict[str, Any], draw: random.Random) -> tuple[WanVAE, AutoencoderKLWan, torch.Tensor, torch.Tensor]:
    """Both VAEs, latents of a clip and a video for them."""
    z = draw.randint(3, 8)
    config = {**config, "base_dim": 2 * draw.randint(4, 8), "z_dim": z, "num_res_blocks": draw.randint(1, 2)}
    config |= {"latents_mean": [0.0] * z, "latents_std": [1.0] * z}
    if "decoder_base_dim" in config:
        config["decoder_base_dim"] = 2 * draw.randint(5, 9)
    theirs = AutoencoderKLWan(**{k: v for k, v in config.items() if k not in ("_class_name", "clip_output")}).eval()
    ours = WanVAE(WanVAEConfig.from_dict(dict(theirs.config)), Weights(random_state(theirs)), OPS)
    frames, height, width = draw.randint(1, 3), draw.randint(2, 4), draw.randint(2, 4)
    scale = ours.config.scale_factor_spatial
    video = torch.rand(1, ours.config.pixel_channels, 1 + 4 * (frames - 1), scale * height, scale * width) * 2 - 1
    return ours, theirs, torch.randn(1, z, frames, height, width), video


def umt5(draw: random.Random) -> Pair:
    config = {**published.UMT5_XXL, "vocab_size": 100, "d_model": draw.randint(20, 60), "d_kv": draw.randint(6, 20)}
    config |= {"num_heads": draw.randint(2, 5), "d_ff": draw.randint(40, 120), "num_layers": draw.randint(1, 3)}
    theirs = UMT5EncoderModel(TheirUMT5Config(**config)).eval()
    ours = UMT5Encoder(UMT5Config.from_dict(config), Weights(random_state(theirs)), OPS)
    ids = torch.randint(3, 100, (1, draw.randint(5, 60)))
    return Pair(lambda: ours(ids), lambda: theirs(ids))


def clip(draw: random.Random) -> Pair:
    patch, heads = draw.randint(5, 14), draw.randint(2, 4)
    config = {**published.CLIP_VIT_H, "hidden_size": heads * draw.randint(8, 20), "num_attention_heads": heads}
    config |= {"intermediate_size": draw.randint(50, 150), "num_hidden_layers": draw.randint(2, 3)}
    config |= {"patch_size": patch, "image_size": patch * draw.randint(2, 5)}
    theirs = CLIPVisionModel(TheirClipConfig(**config)).eval()
    ours = CLIPVisionEncoder(CLIPVisionConfig.from_dict(config), Weights(random_state(theirs)), OPS)
    pixels = torch.randn(1, 3, config["image_size"], config["image_size"])
    return Pair(lambda: ours(pixels), lambda: theirs(pixels))


def check(pair: Pair) -> None:
    with torch.no_grad(), counted(OPS) as tally:
        pair.ours()
    assert tally.flops == sum(tally.by_unit.values()) > 0
    assert tally.flops == pytest.approx(by_torch(pair.ours), rel=0.01), "kinema's own products"
    assert tally.flops == pytest.approx(by_torch(pair.theirs), rel=0.01), "the same work elsewhere"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers(kind, seed):
    check(transformer(kind, random.Random(f"{kind} {seed}")))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", [published.VAE_21, published.VAE_22], ids=["2.1", "2.2"])
def test_vaes(config, seed):
    ours, theirs, latents, video = vae(config, random.Random(seed))
    check(Pair(lambda: ours.decode(latents), lambda: theirs.decode(latents)))
    check(Pair(lambda: ours.encode(video), lambda: theirs.encode(video)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [umt5, clip])
def test_encoders(make, seed):
    check(make(random.Random(seed)))


@pytest.mark.parametrize("seed", range(2))
def test_a_timestep_for_every_token(seed):
    """As TI2V-5B denoises from an image, where the embedding of time is work too."""
    check(transformer("ti2v 5B", random.Random(seed), per_token=True))


def test_a_product_that_is_not_counted_is_noticed():
    pair = umt5(random.Random(0))
    more = torch.randn(64, 64)
    with pytest.raises(AssertionError, match="the same work elsewhere"):
        check(Pair(pair.ours, lambda: [pair.theirs(), more @ more]))


def of(call: Callable[[], Any]) -> int:
    with torch.no_grad(), counted(OPS) as tally:
        call()
    return tally.flops


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", [published.VAE_21, published.VAE_22], ids=["2.1", "2.2"])
def test_what_is_foreseen_of_a_vae(config, seed):
    ours, _, latents, video = vae(config, random.Random(seed))
    assert decode_flops(ours.config, latents.shape[2:], 1) == pytest.approx(of(lambda: ours.decode(latents)), rel=0.02)
    assert encode_flops(ours.config, *video.shape[2:]) == pytest.approx(of(lambda: ours.encode(video)), rel=0.02)


def test_what_is_foreseen_of_the_encoder_and_the_transformer():
    pipe = VideoPipeline.from_pretrained("sample", device="cpu", backend="reference")
    model = pipe.components.transformer()
    text = torch.randn(2, 20, pipe.model.text_width, dtype=torch.float32)
    latents = torch.randn(2, pipe.model.latent_channels, 5, 8, 8, dtype=torch.float32)
    times = torch.tensor([1.0, 2.0], dtype=torch.float32)
    with torch.no_grad():
        context = model.encode_context(text)
    with torch.no_grad(), counted(model.ops) as tally:
        model(latents, times, context)
    assert forward_flops(model.config, (5, 8, 8), 2, 20) == pytest.approx(tally.flops, rel=0.03)
    encoder = pipe.components.part("text_encoder")
    with torch.no_grad(), counted(encoder.ops) as tally:
        encoder(torch.randint(3, 50, (1, 12)))
    assert text_flops(encoder.config, 1, 12) == pytest.approx(tally.flops, rel=0.03)
