"""What a training run is about to do and about how long it takes, for the user to read before it begins."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kinema.sample.recipe import Recipe

# Seconds on two CPU cores: a VAE step of the default recipe, an image and a clip of the second phase
# (docs/sample_model.md, "How long").
VAE_STEP, IMAGE, CLIP = 0.45, 5e-3, 22e-3
DEFAULT = Recipe()


def plan(recipe: Recipe, folder: Path, device: str, *, trains_vae: bool) -> str:
    """One line for each phase: steps, how many of them are done, and hours on two cores where it runs on a CPU."""
    lines = []
    if trains_vae:
        steps, done = recipe.train_vae.schedule.steps, steps_done(folder / "vae.safetensors")
        lines.append(_phase("the VAE", steps, done, vae_seconds(recipe), device))
    else:
        lines.append("phase 1, the VAE: taken from the given model")
    steps, done = recipe.train_dit.schedule.steps, steps_done(folder / "dit.safetensors")
    name = "the transformer and the text encoder"
    lines.append(_phase(name, steps, done, dit_seconds(recipe), device, number=2))
    return "\n".join([*lines, f"state: {folder}, saved every two minutes and when the run is stopped"])


def _phase(name: str, steps: int, done: int, seconds: float, device: str, number: int = 1) -> str:
    so_far = f", {done} done" if done else ""
    hours = seconds * max(0, steps - done) / steps / 3600
    about = f", about {hours:.1f} hours on two cores" if device == "cpu" else ""
    return f"phase {number}, {name}: {steps} steps{so_far}{about}"


def vae_seconds(recipe: Recipe) -> float:
    """Seconds of the first phase on two cores: in proportion to the pixels of a step."""

    def pixels(of: Recipe) -> int:
        return of.train_vae.batch * of.train_vae.crop**2 * max(of.train_vae.frames)

    return recipe.train_vae.schedule.steps * VAE_STEP * pixels(recipe) / pixels(DEFAULT)


def dit_seconds(recipe: Recipe) -> float:
    """The same of the second phase: images first, then images and clips, in proportion to their pixels."""
    train = recipe.train_dit
    later = train.schedule.steps - train.images_until
    images = train.image_batch * (train.images_until + train.image_share * later)
    clips = train.batch * (1 - train.image_share) * later
    area = (recipe.size / DEFAULT.size) ** 2
    return area * (IMAGE * images + CLIP * clips * recipe.num_frames / DEFAULT.num_frames)


def steps_done(state: Path) -> int:
    """Steps that a phase's state file has behind it; 0 where there is none that can be read."""
    try:
        with safe_open(state, framework="pt") as file:
            return int(json.loads(file.metadata()["progress"])["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0
