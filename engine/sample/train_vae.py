"""Phase one: the VAE learns to reconstruct the world from 1/12 of its values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from kinema.checkpoints.weights import Shapes, Weights
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import Ops
from kinema.sample.recipe import Recipe
from kinema.sample.source import ClipSource
from kinema.sample.training import Progress, Run, Tensors, generator_for, normal, whole_numbers
from kinema.vae.posterior import Posterior

PHASE = 1
EVALUATION, STATISTICS = 2**41, 2**42  # numbers of clips that no training step draws


def training_shapes(config: WanVAEConfig) -> Shapes:
    """The VAE's tensors while it is trained: only the resampling convolutions look into the past.

    A kernel whose past taps are zero is a frame-by-frame one, at a third of the work. What a frame depends on then
    reaches back a few latent frames and no further, so a model trained on short clips is right on endless ones.
    """
    return {
        name: (*shape[:2], 1, *shape[3:]) if len(shape) == 5 and "time_conv" not in name else shape
        for name, shape in tensor_shapes(config).items()
    }


def with_past_taps(config: WanVAEConfig, tensors: Tensors) -> Tensors:
    """The trained tensors in their published shapes: the missing past taps are zeros."""
    published = tensor_shapes(config)
    padded = {}
    for name, tensor in tensors.items():
        missing = published[name][2] - tensor.shape[2] if tensor.ndim == 5 else 0
        padded[name] = F.pad(tensor, (0, 0, 0, 0, missing, 0)) if missing else tensor
    return padded


def initial_vae(config: WanVAEConfig, seed: int) -> Tensors:
    """He-scaled convolutions; a residual block's last one starts small, so that the block starts as identity.

    The posterior starts narrow: a decoder that sees mostly noise at first learns to ignore its latents.
    """
    generator = generator_for(seed, PHASE)
    tensors: Tensors = {}
    for name, shape in training_shapes(config).items():
        if name.endswith("gamma"):
            tensors[name] = torch.ones(shape, dtype=torch.float32, device="cpu")
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape, dtype=torch.float32, device="cpu")
        else:
            gain = 0.1 if ".conv2." in name or ".proj." in name else 1.0
            fan_in = math.prod(shape[1:])
            tensors[name] = normal(shape, generator) * gain * math.sqrt(1.6 / fan_in)
    tensors["quant_conv.bias"][config.z_dim :] = -6.0
    tensors["quant_conv.weight"][config.z_dim :] *= 0.1
    return tensors


def is_hidden(name: str) -> bool:
    """Whether a tensor is Muon's: every kernel but those that touch moments and pixels at the ends."""
    return name.endswith("weight") and not name.endswith(("conv_out.weight", "quant_conv.weight"))


def training_clips(recipe: Recipe, source: ClipSource, step: int) -> torch.Tensor:
    """A batch of crops, or of whole frames late in the run: [B, 3, T, h, w] in [−1, 1]."""
    train = recipe.train_vae
    generator = generator_for(recipe.seed, PHASE, step)
    whole = step >= (1 - train.whole_frames) * train.schedule.steps
    frames = train.frames[step % len(train.frames)]
    pixels = train.batch * train.crop**2 * max(train.frames)
    count = max(1, pixels // (frames * (recipe.size if whole else train.crop) ** 2))
    numbers = whole_numbers(0, 2**40, (count,), generator).tolist()
    return source.video(numbers, frames) if whole else source.crops(numbers, frames, train.crop, generator)


def reconstruction_loss(recipe: Recipe, vae: WanVAE, video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The loss of `VaeRecipe`, with latents drawn from the posterior."""
    train = recipe.train_vae
    posterior = Posterior.from_moments(vae.encode_moments(video, chunk=None))
    drawn = vae.decode(posterior.sample(generator), chunk=None, clamp=False)
    error = drawn - video
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
    return error.abs().mean() + train.edges * edges + train.kl * kl


def psnr(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal to noise of videos in [−1, 1], over all their values, in dB."""
    return float(10 * torch.log10(4.0 / F.mse_loss(got.clamp(-1, 1), wanted)))


def train_vae(
    recipe: Recipe,
    source: ClipSource,
    ops: Ops,
    path: Path,
    report: Callable[[Progress, dict[str, float]], None],
    *,
    stop_after: float | None = None,
) -> Run:
    """Train, or go on training, the VAE whose state is in `path`."""
    run = Run(path, initial_vae(recipe.vae, recipe.seed), recipe.train_vae.schedule, is_hidden, ops.device)

    def learn(step: int) -> tuple[torch.Tensor, int]:
        video = training_clips(recipe, source, step).to(ops.device)
        vae = WanVAE(recipe.vae, Weights(run.parameters), ops)
        loss = reconstruction_loss(recipe, vae, video, generator_for(recipe.seed, PHASE, step, 1))
        return run.backward(loss), len(video)

    @torch.no_grad()
    def evaluate(step: int) -> dict[str, float]:
        video = source.video(range(EVALUATION, EVALUATION + 8), recipe.num_frames).to(ops.device)
        vae = WanVAE(recipe.vae, Weights(run.average), ops)
        return {"psnr": round(psnr(vae.decode(vae.encode(video).mode()), video), 2)}

    run.train(learn, report=report, evaluate=evaluate, evaluate_every=500, stop_after=stop_after)
    return run


@torch.no_grad()
def latent_statistics(
    recipe: Recipe, source: ClipSource, vae: WanVAE, clips: int = 256
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent channel over training clips, for the VAE's config."""
    latents = torch.cat(
        [
            vae.encode(source.video(range(first, first + 16), recipe.num_frames)).mode()
            for first in range(STATISTICS, STATISTICS + clips, 16)
        ]
    )
    by_channel = latents.transpose(0, 1).flatten(1)
    return tuple(by_channel.mean(1).tolist()), tuple(by_channel.std(1).tolist())
