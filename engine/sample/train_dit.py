"""Phase two: the transformer and the text encoder learn to remove noise from encoded clips, given their captions.

A clean clip x is mixed with noise ε to (1 − σ)·x + σ·ε, and the model predicts the velocity ε − x (rectified flow,
Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747) at timestep 1000·σ, as Wan does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kinema.checkpoints.weights import Weights
from kinema.errors import RequestError
from kinema.models import wan
from kinema.models.wan import WanTransformer
from kinema.ops import Ops
from kinema.ops.attention import BlockCausal
from kinema.sample.captions import VOCABULARY
from kinema.sample.pool import ClipPool
from kinema.sample.recipe import Recipe
from kinema.sample.source import ClipSource
from kinema.sample.tokenizer import make_tokenizer
from kinema.sample.training import Progress, Run, Tensors, bf16_products_are_faster, generator_for, mixed_precision
from kinema.text import umt5
from kinema.text.umt5 import UMT5Encoder
from kinema.vae.wan import WanVAE

PHASE = 3
PROMPT_TOKENS = 512  # what users' prompts are padded to; see `fold_padding`


@dataclass(frozen=True)
class Batch:
    """Clean latents [B, C, T, h, w], captions, noise levels [B, T] per latent frame, and which frames count."""

    latents: torch.Tensor
    captions: list[str]
    sigmas: torch.Tensor
    counts: torch.Tensor
    causal: bool


def initial_dit(recipe: Recipe) -> Tensors:
    """Both models' tensors, "transformer." and "text." before their names; each residual branch starts at zero."""
    generator = generator_for(recipe.seed, PHASE)
    tensors: Tensors = {}
    for name, shape in wan.tensor_shapes(recipe.transformer).items():
        if "scale_shift_table" in name or name.endswith("bias") or name.startswith("proj_out"):
            tensor = torch.zeros(shape)
        elif "norm" in name:
            tensor = torch.ones(shape)
        elif "time_proj" in name or "attn2.to_out" in name:
            tensor = torch.zeros(shape)
        else:
            tensor = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        tensors[f"transformer.{name}"] = tensor
    _hide_padding(recipe, tensors, generator)
    for name, shape in umt5.tensor_shapes(recipe.text).items():
        if "layer_norm" in name:
            tensor = torch.ones(shape)
        elif "relative_attention_bias" in name:
            tensor = torch.zeros(shape)
        elif name == "shared.weight":
            tensor = torch.randn(shape, generator=generator)
        else:
            branch = 0.3 if name.endswith(("o.weight", "wo.weight")) else 1.0
            # T5 attends without a scale, so its queries start smaller
            scale = recipe.text.d_kv**-0.5 if name.endswith(".q.weight") else 1.0
            tensor = torch.randn(shape, generator=generator) * branch * scale / math.sqrt(shape[1])
        tensors[f"text.{name}"] = tensor
    return tensors


def _hide_padding(recipe: Recipe, tensors: Tensors, generator: torch.Generator) -> None:
    """Let cross-attention start with its eyes on the words.

    A prompt of ten words comes with five hundred keys of padding, all of them to_k's bias, which would draw nearly
    all of an even softmax. So queries start along a direction that the bias points against: a word's key is much more
    than its bias, but the norm makes the bias alone as long as a word.
    """
    for i in range(recipe.transformer.num_layers):
        away = torch.randn(recipe.transformer.dim, generator=generator).sign()
        tensors[f"transformer.blocks.{i}.attn2.to_q.bias"] = 1.5 * away
        tensors[f"transformer.blocks.{i}.attn2.to_k.bias"] = -0.2 * away


class Models:
    """The two models that are trained, built on the current parameters (a step changes them in place)."""

    def __init__(self, recipe: Recipe, tensors: Tensors, ops: Ops, words: tuple[str, ...] = VOCABULARY) -> None:
        weights = Weights(tensors)
        self.transformer = WanTransformer(recipe.transformer, weights.sub("transformer"), ops)
        self.text = UMT5Encoder(recipe.text, weights.sub("text"), ops)
        self.tokenizer = make_tokenizer(words)

    def embed(self, captions: list[str]) -> torch.Tensor:
        """[B, PROMPT_TOKENS, C], zero after each caption's end."""
        encoded = [self.tokenizer.encode(text).ids for text in captions]
        longest = max(map(len, encoded))
        if longest > PROMPT_TOKENS:
            raise RequestError(f"a caption has {longest} words: wanted fewer than {PROMPT_TOKENS}")
        ids = torch.zeros(len(encoded), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        hidden = self.text(ids, mask) * mask.unsqueeze(-1)
        return torch.nn.functional.pad(hidden, (0, 0, 0, PROMPT_TOKENS - longest))

    def velocity(self, noisy: torch.Tensor, sigmas: torch.Tensor, captions: list[str], *, causal: bool) -> torch.Tensor:
        """noisy: [B, C, T, h, w]; sigmas: [B, T] → [B, C, T, h, w]."""
        context = self.transformer.encode_context(self.embed(captions))
        _, ph, pw = self.transformer.config.patch_size
        per_frame = noisy.shape[3] * noisy.shape[4] // (ph * pw)
        timesteps = 1000 * (sigmas if causal else sigmas[:, :1])
        mask = BlockCausal(per_frame) if causal else None
        return self.transformer(noisy, timesteps, context, causal=mask)


@dataclass(frozen=True)
class Pools:
    """Where batches come from: clips to cut windows out of, and many more single images."""

    clips: ClipPool
    images: ClipPool

    @staticmethod
    def open(recipe: Recipe, source: ClipSource, vae: WanVAE, folder: Path) -> Pools:
        sizes = recipe.train_dit.clips, recipe.train_dit.images
        return Pools(*(ClipPool(recipe, size, source, vae, folder) for size in sizes))


def training_batch(recipe: Recipe, pools: Pools, step: int) -> Batch:
    """The batch of a step: images, whole clips or block-causal windows."""
    train = recipe.train_dit
    generator = generator_for(recipe.seed, PHASE, step)
    kind = float(torch.rand((), generator=generator))
    images = step < train.images_until or kind < train.image_share
    causal = not images and kind < train.image_share + train.causal_share
    count = train.image_batch if images else train.batch
    pool = pools.images if images else pools.clips
    pool.advance(step if images else step - train.images_until)
    numbers, latents = pool.draw(count, generator)
    captions = [pool.source.caption(number, generator, mention_motion=not images) for number in numbers]
    dropped = torch.rand(count, generator=generator) < train.drop_caption
    captions = ["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)]

    frames = 1 if images else 1 + (recipe.num_frames - 1) // recipe.vae.scale_factor_temporal
    if causal:
        # half of the windows start the clip, half lie within it, as when a video is continued
        offset = torch.randint(1, max(2, latents.shape[2] - frames + 1), (count,), generator=generator)
        offset = offset.clamp(max=latents.shape[2] - frames)
        offset[torch.rand(count, generator=generator) < 0.5] = 0
        window = offset[:, None] + torch.arange(frames)
        latents = torch.stack([clip[:, places] for clip, places in zip(latents, window, strict=True)])
    else:
        latents = latents[:, :, :frames]
    sigmas, counts = _noise_levels(recipe, count, frames, causal, generator)
    return Batch(latents, captions, sigmas, counts, causal)


def _noise_levels(
    recipe: Recipe, count: int, frames: int, causal: bool, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """σ [B, T], and 1 where the loss counts.

    In causal windows each frame has its own level; in a share of them all frames before a random one are
    (nearly) clean and do not count, as they will be when a video is continued.
    """
    train = recipe.train_dit
    levels = torch.sigmoid(train.noise_mean + train.noise_spread * torch.randn(count, frames, generator=generator))
    counts = torch.ones(count, frames)
    if not causal:
        return levels[:, :1].expand(-1, frames), counts
    current = torch.randint(0, frames, (count, 1), generator=generator)
    clean = (torch.arange(frames) < current) & (torch.rand(count, 1, generator=generator) < train.clean_context)
    nearly = 0.05 * torch.rand(count, frames, generator=generator)
    return torch.where(clean, nearly, levels), torch.where(clean, 0.0, counts)


def flow_loss(models: Models, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity over the frames that count."""
    noise = torch.randn(batch.latents.shape, generator=generator)
    sigma = batch.sigmas[:, None, :, None, None]
    noisy = (1 - sigma) * batch.latents + sigma * noise
    error = models.velocity(noisy, batch.sigmas, batch.captions, causal=batch.causal) - (noise - batch.latents)
    per_frame = error.square().mean(dim=(1, 3, 4))
    return (per_frame * batch.counts).sum() / batch.counts.sum()


def train_dit(
    recipe: Recipe,
    source: ClipSource,
    ops: Ops,
    vae: WanVAE,
    folder: Path,
    report: Callable[[Progress, dict[str, float]], None],
    evaluate: Callable[[Tensors, int], dict[str, float]] | None = None,
    *,
    initial: Tensors | None = None,
    stop_after: float | None = None,
) -> Run:
    """Train, or go on training, the transformer and text encoder whose state is in `folder`.

    initial: what a new run begins with, as `initial_dit` names it; None: that.

    evaluate: given the average and how many frames it has learnt to make, gives figures for the curve.
    """
    initial = initial_dit(recipe) if initial is None else initial
    run = Run(folder / "dit.safetensors", initial, recipe.train_dit.schedule)
    pools = Pools.open(recipe, source, vae, folder)
    ops, arithmetic = mixed_precision(ops, bf16_products_are_faster())

    def loss_of(step: int) -> tuple[torch.Tensor, int]:
        batch = training_batch(recipe, pools, step)
        with arithmetic:
            models = Models(recipe, dict(run.parameters), ops, source.words)
            loss = flow_loss(models, batch, generator_for(recipe.seed, PHASE, step, 1))
        return loss, len(batch.captions)

    def frames_at(step: int) -> int:
        return 1 if step <= recipe.train_dit.images_until else recipe.num_frames

    run.train(
        loss_of,
        report=report,
        evaluate=(lambda step: evaluate(run.average, frames_at(step))) if evaluate is not None else None,
        evaluate_every=1000,
        stop_after=stop_after,
    )
    return run
