"""The inputs of a step of phase two: encoded clips, their captions as tokens, and noise.

They depend on (seed, step) alone, so batches can be made in advance, by as many processes as there are cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from kinema.errors import RequestError
from kinema.families.wan.vae.autoencoder import WanVAE
from kinema.sample.pool import ClipPool
from kinema.sample.recipe import Recipe
from kinema.sample.source import ClipSource
from kinema.sample.tokenizer import make_tokenizer
from kinema.sample.training import generator_for, normal, uniform, whole_numbers

PHASE = 3
PROMPT_TOKENS = 512  # what users' prompts are padded to


@dataclass(frozen=True)
class Tokens:
    """Captions: ids int64 [B, S], padded to a multiple of 8, and how many of them are real, int64 [B]."""

    ids: torch.Tensor
    lengths: torch.Tensor


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> Tokens:
    rows = [tokenizer.encode(text).ids for text in captions]
    longest = max(map(len, rows))
    if longest > PROMPT_TOKENS - 8:
        raise RequestError(f"a caption has {longest} words: wanted at most {PROMPT_TOKENS - 8}")
    ids = torch.zeros(len(rows), -(-longest // 8) * 8, dtype=torch.int64, device="cpu")
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64, device="cpu")
    return Tokens(ids, torch.tensor([len(tokens) for tokens in rows], dtype=torch.int64, device="cpu"))


@dataclass(frozen=True)
class Batch:
    """Clean latents and noise [B, C, T, h, w], captions (see `Tokens`), noise levels σ [B, T] per latent frame, and 1
    where a frame counts."""

    latents: torch.Tensor
    noise: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    sigmas: torch.Tensor
    counts: torch.Tensor
    causal: bool

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(value for value in vars(self).values() if isinstance(value, torch.Tensor))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if name != "causal"}
        return replace(self, **changed)

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Pools:
    """Where batches come from: clips to cut windows out of, and many more single images."""

    clips: ClipPool
    images: ClipPool
    tokenizer: Tokenizer

    @staticmethod
    def open(recipe: Recipe, source: ClipSource, vae: WanVAE, folder: Path) -> Pools:
        train = recipe.train_dit
        images = ClipPool(recipe, train.images, train.schedule.steps, source, vae, folder)
        clips = ClipPool(recipe, train.clips, train.schedule.steps - train.images_until, source, vae, folder)
        return Pools(clips, images, make_tokenizer(source.words))

    def advance(self, recipe: Recipe, step: int) -> None:
        """Encode what the steps up to `step` read."""
        self.images.advance(step)
        if step >= recipe.train_dit.images_until:
            self.clips.advance(step - recipe.train_dit.images_until)


def training_batch(recipe: Recipe, pools: Pools, step: int) -> Batch:
    """The batch of a step to which the pools have advanced: images, whole clips or block-causal windows."""
    train = recipe.train_dit
    generator = generator_for(recipe.seed, PHASE, step)
    kind = float(uniform((), generator))
    images = step < train.images_until or kind < train.image_share
    causal = not images and kind < train.image_share + train.causal_share
    count = train.image_batch if images else train.batch
    pool = pools.images if images else pools.clips
    numbers, latents = pool.draw(step if images else step - train.images_until, count, generator)
    captions = [pool.source.caption(number, generator, mention_motion=not images) for number in numbers]
    dropped = uniform((count,), generator) < train.drop_caption
    captions = ["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)]
    tokens = tokenize(pools.tokenizer, captions)

    frames = 1 if images else 1 + (recipe.num_frames - 1) // recipe.vae.scale_factor_temporal
    if causal:
        # half of the windows start the clip, half lie within it, as when a video is continued
        offset = whole_numbers(1, max(2, latents.shape[2] - frames + 1), (count,), generator)
        offset = offset.clamp(max=latents.shape[2] - frames)
        offset[uniform((count,), generator) < 0.5] = 0
        window = offset[:, None] + torch.arange(frames, dtype=torch.int64, device="cpu")
        latents = torch.stack([clip[:, places] for clip, places in zip(latents, window, strict=True)])
    else:
        latents = latents[:, :, :frames]
    sigmas, counts = _noise_levels(recipe, count, frames, causal, generator)
    noise = normal(latents.shape, generator)
    return Batch(latents, noise, tokens.ids, tokens.lengths, sigmas, counts, causal)


def _noise_levels(
    recipe: Recipe, count: int, frames: int, causal: bool, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """σ [B, T], and 1 where the loss counts.

    In causal windows each frame has its own level; in a share of them all frames before a random one are
    (nearly) clean and do not count, as they will be when a video is continued.
    """
    train = recipe.train_dit
    levels = torch.sigmoid(train.noise_mean + train.noise_spread * normal((count, frames), generator))
    counts = torch.ones_like(levels)
    if not causal:
        return levels[:, :1].repeat(1, frames), counts
    current = whole_numbers(0, frames, (count, 1), generator)
    before = torch.arange(frames, dtype=torch.int64, device="cpu") < current
    clean = before & (uniform((count, 1), generator) < train.clean_context)
    nearly = 0.05 * uniform((count, frames), generator)
    return torch.where(clean, nearly, levels), torch.where(clean, 0.0, counts)


@dataclass(frozen=True)
class _Steps:
    """The batches of all steps as a data set. Every clip that they read has been encoded."""

    recipe: Recipe
    pools: Pools

    def __getitem__(self, step: int) -> Batch:
        return training_batch(self.recipe, self.pools, step)


def batches(recipe: Recipe, pools: Pools, first: int, workers: int) -> Iterator[Batch]:
    """The batches of the steps from `first` to the last.

    Without workers, each batch and the clips it needs are made when it is asked for. With workers, which pay off
    where the device is faster than they are, all clips are encoded first.
    """
    last = recipe.train_dit.schedule.steps
    if not workers:
        for step in range(first, last):
            pools.advance(recipe, step)
            yield training_batch(recipe, pools, step)
        return
    pools.advance(recipe, last - 1)
    loader: DataLoader[Batch] = DataLoader(
        _Steps(recipe, pools),  # type: ignore[arg-type]
        sampler=range(first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork",
    )
    yield from loader
