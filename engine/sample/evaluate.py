"""Whether a model in training follows its captions: the figures of the training curve."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kinema import schedulers
from kinema.families.wan.vae.autoencoder import WanVAE
from kinema.ops import Ops
from kinema.sample.adherence import judge
from kinema.sample.batches import tokenize
from kinema.sample.captions import caption
from kinema.sample.export import SCHEDULER
from kinema.sample.recipe import Recipe
from kinema.sample.render import to_frames
from kinema.sample.tokenizer import make_tokenizer
from kinema.sample.train_dit import Models
from kinema.sample.training import Tensors, generator_for, normal
from kinema.sample.world import Description, Split, sample_scene

PHASE = 4


@dataclass(frozen=True)
class Quiz:
    """Captions with what they say, and how they are generated."""

    captions: list[str]
    wanted: list[Description]
    steps: int = 12
    guidance: float = 3.0

    @staticmethod
    def draw(recipe: Recipe, count: int, split: Split = "train") -> Quiz:
        generator = generator_for(recipe.seed, PHASE)
        scenes = [sample_scene(generator, split) for _ in range(count)]
        moves = recipe.num_frames > 1
        captions = [caption(scene, generator, mention_motion=moves) for scene in scenes]
        return Quiz(captions, [scene.describe() for scene in scenes])


@torch.no_grad()
def generate_latents(models: Models, ops: Ops, recipe: Recipe, quiz: Quiz) -> torch.Tensor:
    """Normalised latents [B, C, T, h, w] of the quiz's captions, by the scheduler that ships with the model."""
    frames = 1 + (recipe.num_frames - 1) // recipe.vae.scale_factor_temporal
    side = recipe.size // recipe.vae.scale_factor_spatial
    count = len(quiz.captions)
    generator = generator_for(recipe.seed, PHASE, 1)
    latents = normal((count, recipe.vae.z_dim, frames, side, side), generator)
    core = schedulers.core_from_config(SCHEDULER)
    state = schedulers.start(core, core.grid(quiz.steps), generator=generator)
    latents = latents.to(ops.device)
    tokens = tokenize(make_tokenizer(), [*quiz.captions, *[""] * count])
    context = models.context(tokens.ids.to(ops.device), tokens.lengths.to(ops.device))
    while not state.done:
        timesteps = state.timestep.expand(2 * count)
        cond, uncond = models.transformer(torch.cat((latents, latents)), timesteps, context).chunk(2)
        latents = schedulers.step(ops, state, latents, cond, uncond, guidance=quiz.guidance)
    return latents


@torch.no_grad()
def adherence(recipe: Recipe, tensors: Tensors, vae: WanVAE, ops: Ops, quiz: Quiz) -> dict[str, float]:
    """The share of clips whose subject, colour and motion are what the caption says, each and all together.

    For single images motion always counts as right.
    """
    models = Models(recipe, tensors, ops)
    videos = vae.decode(vae.denormalize(generate_latents(models, ops, recipe, quiz)))
    verdicts = [
        judge(frames.numpy(), wanted) for frames, wanted in zip(to_frames(videos).cpu(), quiz.wanted, strict=True)
    ]
    parts = {
        "subject": [v.subject_ok is not False for v in verdicts],
        "colour": [v.colour_ok is not False for v in verdicts],
        "motion": [v.motion_ok is not False for v in verdicts],
    }
    together = [all(row) for row in zip(*parts.values(), strict=True)]
    return {name: sum(oks) / len(oks) for name, oks in {**parts, "all": together}.items()}
