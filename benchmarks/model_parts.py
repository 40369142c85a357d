"""The calls that `bench model` and `bench peers` time: a forward of each part of a pipeline, on random inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinema.bench.random_model import write_random_model
from kinema.errors import RequestError
from kinema.ops.common.cache_files import cache_folder
from kinema.pipeline import VideoPipeline

ALIASES = {"wan-1.3b": "wan2.1-t2v-1.3b", "wan-14b": "wan2.1-t2v-14b", "wan-5b": "wan2.2-ti2v-5b"}
PARTS = ("transformer", "vae", "text")
TIMESTEP = 500.0


@dataclass(frozen=True)
class Sizes:
    """grid: tokens of the transformer along T, H, W. text: tokens of the prompt, none of them padding."""

    grid: tuple[int, int, int]
    text: int

    @property
    def tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w


@dataclass(frozen=True)
class Inputs:
    """The same for every peer, from a seed, on the pipeline's device.

    latents [1, C, T, H, W] of the transformer, decoded [1, z, T, H, W] of the VAE, timestep [1], text [1, L, text_dim],
    all fp32; ids [1, L] of the text encoder, int64.
    """

    latents: torch.Tensor
    decoded: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor


def grid_of(tokens: int) -> tuple[int, int, int]:
    """The squarest frames, at most twice as wide as high, and as few as possible but several: 1280 is 5 × 16 × 16."""
    best = None
    for t in range(1, tokens + 1):
        if tokens % t:
            continue
        area = tokens // t
        h = next(h for h in range(int(area**0.5), 0, -1) if area % h == 0)
        shape = (area / h**2 > 2, t == 1, area / h**2, t)
        if best is None or shape < best[0]:
            best = (shape, (t, h, area // h))
    if best is None:
        raise RequestError(f"{tokens} tokens: wanted at least 1")
    return best[1]


def sizes_for(pipe: VideoPipeline, tokens: int | None, text: int | None) -> Sizes:
    """What was asked for, or the model's own clip and prompt."""
    if text is not None and text < 1:
        raise RequestError(f"{text} tokens of text: wanted at least 1")
    if tokens is not None:
        grid = grid_of(tokens)
    else:
        config, patch, size = pipe.model.configs["vae"], pipe.transformer_config.patch_size, pipe.defaults
        latent = (
            1 + (size.num_frames - 1) // config.scale_factor_temporal,
            size.height // config.scale_factor_spatial,
            size.width // config.scale_factor_spatial,
        )
        grid = (latent[0] // patch[0], latent[1] // patch[1], latent[2] // patch[2])
    return Sizes(grid, text or pipe.defaults.max_sequence_length)


def inputs_for(pipe: VideoPipeline, sizes: Sizes, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: a GPU draws other numbers
    config, device = pipe.transformer_config, pipe.ops.device
    shape = [n * p for n, p in zip(sizes.grid, config.patch_size, strict=True)]
    vocabulary = int(pipe.folder.component("text_encoder").config["vocab_size"])

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(1, *size, generator=generator, dtype=torch.float32, device="cpu").to(device)

    def ids(count: int) -> torch.Tensor:
        drawn = torch.randint(3, vocabulary, (1, count), generator=generator, dtype=torch.int64, device="cpu")
        return drawn.to(device)

    return Inputs(
        latents=normal(config.in_channels, *shape),
        decoded=normal(pipe.model.configs["vae"].z_dim, *shape),
        timestep=torch.tensor([TIMESTEP], dtype=torch.float32, device=device),
        text=normal(sizes.text, config.text_dim),
        ids=ids(sizes.text),
    )


def calls_of(pipe: VideoPipeline, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """{part: a call, which loads it the first time}. The transformer's includes the prompt's keys and values."""
    parts = pipe.components

    def transformer() -> torch.Tensor:
        model = parts.transformer(pipe.model.experts[0])
        return model(inputs.latents, inputs.timestep, model.encode_context(inputs.text))

    return {
        "transformer": torch.no_grad()(transformer),
        "vae": torch.no_grad()(lambda: parts.vae("decoder").decode(inputs.decoded)),
        "text": torch.no_grad()(lambda: parts.part("text_encoder")(inputs.ids)),
    }


def folder_of(config: str, layers: int | None, progress: Callable[[str], None] = lambda line: None) -> Path:
    """A published configuration with random weights, written once: in $KINEMA_CACHE, or ~/.cache/kinema."""
    preset = ALIASES.get(config, config)
    root = cache_folder() / "random"
    folder = root / f"{preset}-{'all' if layers is None else layers}-layers-bf16"
    if not (folder / "model_index.json").is_file():  # which is written last
        write_random_model(folder, preset, dtype=torch.bfloat16, layers=layers, progress=progress)
    return folder
