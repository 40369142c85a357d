"""Phase two: the transformer and the text encoder learn to remove noise from encoded clips, given their captions.

A clean clip x is mixed with noise ε to (1 − σ)·x + σ·ε, and the model predicts the velocity ε − x (rectified flow,
Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747) at timestep 1000·σ, as Wan does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from kinema.checkpoints.weights import Weights
from kinema.encoders import umt5
from kinema.encoders.umt5 import UMT5Encoder
from kinema.families.wan import config as wan
from kinema.families.wan.context import Context
from kinema.families.wan.transformer import WanTransformer
from kinema.families.wan.vae.autoencoder import WanVAE
from kinema.ops import Ops
from kinema.ops.attention import BlockCausal
from kinema.sample.batches import PHASE, PROMPT_TOKENS, Batch, Pools, batches
from kinema.sample.captured import CapturedLoss
from kinema.sample.recipe import Recipe
from kinema.sample.source import ClipSource
from kinema.sample.training import (
    Progress,
    Run,
    Tensors,
    bf16_products_are_faster,
    generator_for,
    mixed_precision,
    normal,
)


def initial_dit(recipe: Recipe) -> Tensors:
    """Both models' tensors, "transformer." and "text." before their names; each residual branch starts at zero."""
    generator = generator_for(recipe.seed, PHASE)
    tensors: Tensors = {}
    for name, shape in wan.tensor_shapes(recipe.transformer).items():
        if "scale_shift_table" in name or name.endswith("bias") or name.startswith("proj_out"):
            tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
        elif "norm" in name:
            tensor = torch.ones(shape, dtype=torch.float32, device="cpu")
        elif "time_proj" in name or "attn2.to_out" in name:
            tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
        else:
            tensor = normal(shape, generator) / math.sqrt(math.prod(shape[1:]))
        tensors[f"transformer.{name}"] = tensor
    _hide_padding(recipe, tensors, generator)
    for name, shape in umt5.tensor_shapes(recipe.text).items():
        if "layer_norm" in name:
            tensor = torch.ones(shape, dtype=torch.float32, device="cpu")
        elif "relative_attention_bias" in name:
            tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
        elif name == "shared.weight":
            tensor = normal(shape, generator)
        else:
            branch = 0.3 if name.endswith(("o.weight", "wo.weight")) else 1.0
            # T5 attends without a scale, so its queries start smaller
            scale = recipe.text.d_kv**-0.5 if name.endswith(".q.weight") else 1.0
            tensor = normal(shape, generator) * branch * scale / math.sqrt(shape[1])
        tensors[f"text.{name}"] = tensor
    return tensors


def _hide_padding(recipe: Recipe, tensors: Tensors, generator: torch.Generator) -> None:
    """Let cross-attention start by attending to the words.

    A prompt of ten words comes with five hundred keys of padding, all of them to_k's bias, which would draw nearly
    all of an even softmax. So queries start along a direction that the bias points against: a word's key is much more
    than its bias, but the norm makes the bias alone as long as a word.
    """
    for i in range(recipe.transformer.num_layers):
        away = normal((recipe.transformer.dim,), generator).sign()
        tensors[f"transformer.blocks.{i}.attn2.to_q.bias"] = 1.5 * away
        tensors[f"transformer.blocks.{i}.attn2.to_k.bias"] = -0.2 * away


class Models:
    """The two models that are trained, built on the current parameters (a step changes them in place)."""

    def __init__(self, recipe: Recipe, tensors: Tensors, ops: Ops) -> None:
        weights = Weights(tensors)
        self.transformer = WanTransformer(recipe.transformer, weights.sub("transformer"), ops)
        self.text = UMT5Encoder(recipe.text, weights.sub("text"), ops)

    def context(self, ids: torch.Tensor, lengths: torch.Tensor) -> Context:
        """The context of captions (see `Tokens`), as of PROMPT_TOKENS tokens, nearly all of them padding."""
        real = torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device) < lengths[:, None]
        hidden = self.text.right_padded(ids, lengths) * real.unsqueeze(-1)
        return self.transformer.encode_context(
            torch.nn.functional.pad(hidden, (0, 0, 0, 1)), folded=PROMPT_TOKENS - ids.shape[1]
        )

    def velocity(self, noisy: torch.Tensor, sigmas: torch.Tensor, context: Context, *, causal: bool) -> torch.Tensor:
        """noisy: [B, C, T, h, w]; sigmas: [B, T] → [B, C, T, h, w]."""
        _, ph, pw = self.transformer.config.patch_size
        per_frame = noisy.shape[3] * noisy.shape[4] // (ph * pw)
        timesteps = 1000 * (sigmas if causal else sigmas[:, :1])
        mask = BlockCausal(per_frame) if causal else None
        return self.transformer(noisy, timesteps, context, causal=mask)


def flow_loss(models: Models, batch: Batch) -> torch.Tensor:
    """Mean squared error of the velocity over the frames that count."""
    sigma = batch.sigmas[:, None, :, None, None]
    noisy = (1 - sigma) * batch.latents + sigma * batch.noise
    context = models.context(batch.ids, batch.lengths)
    error = models.velocity(noisy, batch.sigmas, context, causal=batch.causal) - (batch.noise - batch.latents)
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

    initial: the tensors that a new run starts from, named as in `initial_dit`; None: `initial_dit`'s.
    evaluate: given the average and how many frames it has learnt to make, gives figures for the curve.
    """
    initial = initial_dit(recipe) if initial is None else initial
    on_gpu = ops.device.type == "cuda"
    run = Run(folder / "dit.safetensors", initial, recipe.train_dit.schedule, device=ops.device)
    pools = Pools.open(recipe, source, vae, folder)
    ops, arithmetic = mixed_precision(ops, not on_gpu and bf16_products_are_faster())
    made = batches(recipe, pools, run.progress.step, workers=max(1, (os.cpu_count() or 1) - 2) if on_gpu else 0)

    def loss_of(batch: Batch) -> torch.Tensor:
        with arithmetic:
            return flow_loss(Models(recipe, dict(run.parameters), ops), batch)

    captured = CapturedLoss(loss_of, list(run.parameters.values()), ops.device) if on_gpu else None

    def learn(step: int) -> tuple[torch.Tensor, int]:
        batch = next(made)
        return captured(batch) if captured is not None else run.backward(loss_of(batch)), len(batch.latents)

    def frames_at(step: int) -> int:
        return 1 if step <= recipe.train_dit.images_until else recipe.num_frames

    run.train(
        learn,
        report=report,
        evaluate=(lambda step: evaluate(run.average, frames_at(step))) if evaluate is not None else None,
        evaluate_every=1000,
        stop_after=stop_after,
    )
    return run
