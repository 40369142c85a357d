"""FLOPs of a stage: two for each multiplication of its matrix products and convolutions."""

from __future__ import annotations

import math

from kinema.encoders.umt5 import UMT5Config
from kinema.families.geometry import LatentSize
from kinema.families.wan.config import WanConfig
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.stages import DownStageSpec, UpStageSpec

CUBE = 27  # taps of a 3×3×3 convolution


def stage_flops(
    transformer: WanConfig,
    vae: WanVAEConfig,
    text: UMT5Config | None,
    latent: LatentSize,
    *,
    samples: int,
    rows: int,
    prompts: int,
    text_tokens: int,
    encoded: tuple[int, int, int],
) -> dict[str, int]:
    """Of every stage that a request may have; of "denoise" one forward.

    rows: of that forward. prompts: that are encoded. encoded: frames, height, width of what the VAE encodes.
    """
    return {
        "image": encode_flops(vae, *encoded),
        "text": 0 if text is None else text_flops(text, prompts, text_tokens),
        "denoise": forward_flops(transformer, latent, rows, text_tokens),
        "decode": decode_flops(vae, latent, samples),
    }


def forward_flops(config: WanConfig, latent: LatentSize, rows: int, text_tokens: int) -> int:
    """One forward of `rows` rows, the prompt's keys and values at hand."""
    tokens = math.prod(n // p for n, p in zip(latent, config.patch_size, strict=True))
    dim, patch = config.dim, math.prod(config.patch_size)
    products = dim * (6 * dim + 2 * config.ffn_dim)  # qkv, out; q and out of cross-attention; up, down
    attended = 2 * dim * (tokens + text_tokens + (config.pos_embed_seq_len or 0))
    ends = patch * dim * (config.in_channels + config.latent_channels)
    modulation = dim * (config.freq_dim + 7 * dim)
    return 2 * rows * (tokens * (config.num_layers * (products + attended) + ends) + modulation)


def text_flops(config: UMT5Config, prompts: int, tokens: int) -> int:
    """One forward of the text encoder."""
    inner = config.num_heads * config.d_kv
    mlp = (3 if config.feed_forward.gated else 2) * config.d_model * config.d_ff
    layer = 4 * config.d_model * inner + mlp + 2 * tokens * inner
    return 2 * prompts * tokens * config.num_layers * layer


def decode_flops(config: WanVAEConfig, latent: LatentSize, samples: int) -> int:
    """Latents (T, h, w) to frames."""
    frames, area = latent[0], latent[1] * latent[2]
    first = config.decoder_dims[0]
    total = frames * area * (CUBE * config.z_dim * first + config.z_dim**2) + _mid(first, frames, area)
    for stage in UpStageSpec.all(config):
        total += frames * area * _blocks(stage.into, stage.hidden, len(stage.blocks))
        if stage.doubling is not None:
            if stage.temporal:  # the first frame is not doubled
                total += (frames - 1) * area * 3 * stage.hidden * 2 * stage.hidden
                frames = 2 * frames - 1
            area *= 4
            total += frames * area * 9 * stage.hidden * stage.out
    return 2 * samples * (total + frames * area * CUBE * config.decoder_dims[-1] * config.out_channels)


def encode_flops(config: WanVAEConfig, num_frames: int, height: int, width: int) -> int:
    """Frames of (height, width) pixels to latents."""
    frames, area = num_frames, height * width // config.patch**2
    total = frames * area * CUBE * config.in_channels * config.encoder_dims[0]
    for stage in DownStageSpec.all(config):
        total += frames * area * _blocks(stage.into, stage.out, len(stage.blocks))
        if stage.halving is not None:
            area //= 4
            total += frames * area * 9 * stage.out**2
            if stage.temporal:
                frames = (frames - 1) // 2 + 1
                total += (frames - 1) * area * 3 * stage.out**2
    last = config.encoder_dims[-1]
    moments = CUBE * last * 2 * config.z_dim + 4 * config.z_dim**2
    return 2 * (total + _mid(last, frames, area) + frames * area * moments)


def _blocks(into: int, out: int, count: int) -> int:
    """Multiplications a position of residual blocks, of which the first changes the channels."""
    first = CUBE * out * (into + out) + (into * out if into != out else 0)
    return first + (count - 1) * 2 * CUBE * out**2


def _mid(channels: int, frames: int, area: int) -> int:
    """Two residual blocks, and attention within each frame between them."""
    attention = 4 * channels**2 + 2 * area * channels
    return frames * area * (2 * _blocks(channels, channels, 1) + attention)
