"""Samples of several requests through one forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
            output = _forward_in_pieces(transformer, _joined(alike))
        sizes = [parts[i].latents.shape[0] for i in members]
        predictions.update(zip(members, torch.split(output, sizes), strict=True))
    return [predictions[i] for i in range(len(parts))]


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.timesteps for part in parts]),
        parts[0].context.concatenate([part.context for part in parts]),
    )


def _forward_in_pieces(transformer: Denoiser, rows: Rows) -> torch.Tensor:
    tokens = rows.latents[0, 0].numel() // math.prod(transformer.patch_size)
    size = max(1, MAX_TOKENS_PER_FORWARD // tokens)
    count = rows.latents.shape[0]
    if count <= size:
        return transformer(rows.latents, rows.timesteps, rows.context)
    pieces = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat([transformer(rows.latents[p], rows.timesteps[p], rows.context.select(p)) for p in pieces])
