"""Encoded training clips: the VAE runs once per clip, the transformer reads each several times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kinema.families.wan.vae.autoencoder import WanVAE
from kinema.sample.recipe import PoolRecipe, Recipe
from kinema.sample.source import ClipSource
from kinema.sample.training import whole_numbers

ENCODE_TOGETHER = {"cpu": 64, "cuda": 1024}  # latent frames


class ClipPool:
    """Encoded clips in a file, clip n of the source at n. What the file lacks is encoded when a step needs it.

    The pool starts small and grows by a few clips a step: training starts early and never sees the same few clips for
    long. Which clips a step draws from depends on its number only, so a resumed run continues with the same ones.
    """

    def __init__(
        self, recipe: Recipe, size: PoolRecipe, steps: int, source: ClipSource, vae: WanVAE, folder: Path
    ) -> None:
        """steps: how many will draw from it, which is what it has room for."""
        self.recipe = recipe
        self.size = size
        self.source = source
        self.vae = vae
        side = recipe.size // recipe.vae.scale_factor_spatial
        room = self.clips_at(max(steps, 1) - 1)
        shape = (room, recipe.vae.z_dim, size.latents, side, side)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"pool-{recipe.seed}-{size.latents}-{room}-{self._fingerprint()}"
        latents, there = folder / f"{name}.npy", folder / f"{name}.there.npy"
        fresh = not (latents.exists() and there.exists())
        mode: Literal["w+", "r+"] = "w+" if fresh else "r+"
        self._latents = np.lib.format.open_memmap(latents, mode=mode, dtype=np.float16, shape=shape)
        self._there = np.lib.format.open_memmap(there, mode=mode, dtype=np.bool_, shape=shape[:1])
        self._made = 0

    def _fingerprint(self) -> str:
        """Of the VAE, by what it does to one clip: latents of another VAE must not be taken for this one's."""
        latents = self._latents_of([0])
        return hashlib.sha256((latents * 20).round().to(torch.int16).numpy().tobytes()).hexdigest()[:12]

    def clips_at(self, step: int) -> int:
        """How many clips step `step` may draw from."""
        return self.size.start + step * self.size.per_step

    def advance(self, step: int) -> None:
        """Encode the clips that step `step` may draw from."""
        target = self.clips_at(step)
        missing = (self._made + np.flatnonzero(~self._there[self._made : target])).tolist()
        together = max(1, ENCODE_TOGETHER[self.vae.device.type] // self.size.latents)
        for start in range(0, len(missing), together):
            numbers = missing[start : start + together]
            self._latents[numbers] = self._latents_of(numbers).to(torch.float16).numpy()
            self._there[numbers] = True  # only now: a kill while they are written leaves them missing
        self._made = max(self._made, target)

    def draw(self, step: int, count: int, generator: torch.Generator) -> tuple[list[int], torch.Tensor]:
        """Numbers of `count` random clips of those for step `step`, and their normalised latents [count, C, T, h, w].

        The pool has advanced to that step or a later one.
        """
        numbers = whole_numbers(0, self.clips_at(step), (count,), generator).tolist()
        return numbers, torch.from_numpy(self._latents[numbers]).float()

    @torch.no_grad()
    def _latents_of(self, numbers: list[int]) -> torch.Tensor:
        frames = 1 + (self.size.latents - 1) * self.recipe.vae.scale_factor_temporal
        video = self.source.video(numbers, frames)
        return self.vae.normalize(self.vae.encode(video, chunk=None).mode()).cpu()
