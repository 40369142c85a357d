"""Samples of several requests through one forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kinema.denoise.timesteps import Timesteps
from kinema.families.base import MAX_TOKENS_PER_FORWARD, Context, Denoiser


@dataclass(frozen=True, eq=False)
class Rows:
    """What a transformer is given for some samples, which the rows of their context repeat: [B] are [R / B · B].

    latents: [B, C, T, h, w]. timesteps: [B], or [B, G] by group of tokens. channels: [B, Cc, T, h, w] that are
    concatenated to the latents. schedule, step: where the timesteps come from, if they are those of a whole schedule.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    context: Context
    channels: torch.Tensor | None = None
    schedule: Timesteps | None = None
    step: int = 0

    @property
    def count(self) -> int:
        """R."""
        return self.context.rows

    @property
    def shape(self) -> tuple[object, ...]:
        """Rows of equal shape can share a forward."""
        return (self.latents.shape[1:], self.timesteps.shape[1:], self.context.shape)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [R, C + Cc, T, h, w] and timesteps [R] or [R, G] of all rows."""
        latents = self.latents if self.channels is None else torch.cat((self.latents, self.channels), dim=1)
        repeats = self.count // len(latents)
        if repeats == 1:
            return latents, self.timesteps
        return latents.repeat(repeats, 1, 1, 1, 1), self.timesteps.repeat(repeats, *[1] * (self.timesteps.ndim - 1))

    def write(self, latents: torch.Tensor) -> None:
        """The rows' latents into [R, C + Cc, T, h, w], of any float dtype."""
        samples, channels = self.latents.shape[:2]
        for start in range(0, self.count, samples):
            rows = latents[start : start + samples]
            if self.channels is None:
                rows.copy_(self.latents)
            else:
                rows[:, :channels].copy_(self.latents)
                rows[:, channels:].copy_(self.channels)


Replayed = Callable[[Denoiser, Sequence[Rows]], torch.Tensor | None]


def forward_together(
    transformer: Denoiser, parts: Sequence[Rows], replayed: Replayed | None = None
) -> list[torch.Tensor]:
    """One prediction per part, [R, C, T, h, w] each; parts of equal shape go through the transformer together.

    replayed: gives the forward of parts of one shape if it is recorded, else None.
    """
    predictions: dict[int, torch.Tensor] = {}
    for shape in dict.fromkeys(part.shape for part in parts):
        members = [i for i, part in enumerate(parts) if part.shape == shape]
        alike = [parts[i] for i in members]
        output = replayed(transformer, alike) if replayed is not None else None
        if output is None:
            output = _forward_in_pieces(transformer, *joined(alike))
        sizes = [part.count for part in alike]
        predictions.update(zip(members, [output] if len(alike) == 1 else torch.split(output, sizes), strict=True))
    return [predictions[i] for i in range(len(parts))]


def joined(parts: Sequence[Rows]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Latents [R, C, T, h, w], timesteps [R] or [R, G] and context of parts of one shape."""
    latents, timesteps = zip(*(part.inputs() for part in parts), strict=True)
    context = parts[0].context.concatenate([part.context for part in parts])
    if len(parts) == 1:
        return latents[0], timesteps[0], context
    return torch.cat(latents), torch.cat(timesteps), context


def _forward_in_pieces(
    transformer: Denoiser, latents: torch.Tensor, timesteps: torch.Tensor, context: Context
) -> torch.Tensor:
    tokens = latents[0, 0].numel() // math.prod(transformer.patch_size)
    size = max(1, MAX_TOKENS_PER_FORWARD // tokens)
    count = latents.shape[0]
    if count <= size:
        return transformer(latents, timesteps, context)
    pieces = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat([transformer(latents[p], timesteps[p], context.select(p)) for p in pieces])
