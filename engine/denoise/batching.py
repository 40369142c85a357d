"""Samples of several requests through one forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinema.families.base import MAX_TOKENS_PER_FORWARD, Context, Denoiser


@dataclass(frozen=True)
class Rows:
    """What a transformer is given for some samples: [R, C, T, h, w], [R] or [R, G], and their context."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    context: Context

    @property
    def shape(self) -> tuple[object, ...]:
        """Rows of equal shape can share a forward."""
        return (self.latents.shape[1:], self.timesteps.shape[1:], self.context.shape)


def forward_together(transformer: Denoiser, parts: Sequence[Rows]) -> list[torch.Tensor]:
    """One prediction per part, [R, C, T, h, w] each; parts of equal shape go through the transformer together."""
    predictions: dict[int, torch.Tensor] = {}
    for shape in dict.fromkeys(part.shape for part in parts):
        members = [i for i, part in enumerate(parts) if part.shape == shape]
        joined = Rows(
            torch.cat([parts[i].latents for i in members]),
            torch.cat([parts[i].timesteps for i in members]),
            parts[members[0]].context.concatenate([parts[i].context for i in members]),
        )
        output = _forward_in_pieces(transformer, joined)
        sizes = [parts[i].latents.shape[0] for i in members]
        predictions.update(zip(members, torch.split(output, sizes), strict=True))
    return [predictions[i] for i in range(len(parts))]


def _forward_in_pieces(transformer: Denoiser, rows: Rows) -> torch.Tensor:
    tokens = rows.latents[0, 0].numel() // math.prod(transformer.patch_size)
    size = max(1, MAX_TOKENS_PER_FORWARD // tokens)
    count = rows.latents.shape[0]
    if count <= size:
        return transformer(rows.latents, rows.timesteps, rows.context)
    pieces = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat([transformer(rows.latents[p], rows.timesteps[p], rows.context.select(p)) for p in pieces])
