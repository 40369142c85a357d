"""Encoded training clips: the VAE runs once per clip, the transformer reads each several times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kinema.sample.recipe import PoolRecipe, Recipe
from kinema.sample.source import ClipSource
from kinema.vae.wan import WanVAE

ENCODE_TOGETHER = 64  # latent frames


class ClipPool:
    """A ring of encoded clips in a file. Clip n of the source lies at n mod capacity.

    The pool starts small and grows by a few clips a step, then the oldest are replaced: training starts early
    and never sees the same few clips for long. After `advance(step)` its content depends on the step only, so a
    resumed run continues with the same clips; what the file lacks is encoded again.
    """

    def __init__(self, recipe: Recipe, size: PoolRecipe, source: ClipSource, vae: WanVAE, folder: Path) -> None:
        self.recipe = recipe
        self.size = size
        self.source = source
        self.vae = vae
        side = recipe.size // recipe.vae.scale_factor_spatial
        shape = (size.capacity, recipe.vae.z_dim, size.latents, side, side)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"pool-{recipe.seed}-{size.latents}-{self._fingerprint()}"
        latents, numbers = folder / f"{name}.npy", folder / f"{name}.numbers.npy"
        fresh = not (latents.exists() and numbers.exists())
        mode: Literal["w+", "r+"] = "w+" if fresh else "r+"
        self._latents = np.lib.format.open_memmap(latents, mode=mode, dtype=np.float16, shape=shape)
        self._numbers = np.lib.format.open_memmap(numbers, mode=mode, dtype=np.int64, shape=shape[:1])
        if fresh:
            self._numbers[:] = -1
        self.made = 0

    def _fingerprint(self) -> str:
        """Of the VAE, by what it does to one clip: latents of another VAE must not be taken for this one's."""
        latents = self._latents_of([0])
        return hashlib.sha256((latents * 20).round().to(torch.int16).numpy().tobytes()).hexdigest()[:12]

    def clips_at(self, step: int) -> int:
        """How many clips have been made by step `step`."""
        return self.size.start + step * self.size.per_step

    def advance(self, step: int) -> None:
        """Make the clips that step `step` may read."""
        target = self.clips_at(step)
        oldest = max(self.made, target - self.size.capacity)
        missing = [n for n in range(oldest, target) if self._numbers[n % len(self._numbers)] != n]
        together = max(1, ENCODE_TOGETHER // self.size.latents)
        for start in range(0, len(missing), together):
            self._encode(missing[start : start + together])
        self.made = target

    def draw(self, count: int, generator: torch.Generator) -> tuple[list[int], torch.Tensor]:
        """Numbers of `count` random clips of the pool, and their normalised latents [count, C, T, h, w]."""
        low = max(0, self.made - len(self._numbers))
        numbers = torch.randint(low, self.made, (count,), generator=generator).tolist()
        latents = torch.from_numpy(self._latents[[n % len(self._numbers) for n in numbers]])
        return numbers, latents.float()

    @torch.no_grad()
    def _latents_of(self, numbers: list[int]) -> torch.Tensor:
        frames = 1 + (self.size.latents - 1) * self.recipe.vae.scale_factor_temporal
        video = self.source.video(numbers, frames)
        return self.vae.normalize(self.vae.encode(video, chunk=None).mode())

    def _encode(self, numbers: list[int]) -> None:
        for number, encoded in zip(numbers, self._latents_of(numbers), strict=True):
            slot = number % len(self._numbers)
            self._numbers[slot] = -1  # a kill while the slot is written leaves it empty
            self._latents[slot] = encoded.to(torch.float16).numpy()
            self._numbers[slot] = number
