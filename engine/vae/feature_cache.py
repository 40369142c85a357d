"""What a clip leaves behind between chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class FeatureCache:
    """Past frames of every causal convolution, for one clip on its way through the encoder or the decoder.

    Belongs to a request. Zeros start a clip; the convolutions overwrite them in place. With tiling each tile has
    a cache of its own inside this one, so a clip keeps the same tiling from its first chunk to its last. The maps
    between layers have their memory here too, all tiles the same: new ones for each frame would leave a heap of holes.
    """

    def __init__(self, maps: dict[str, torch.Tensor] | None = None) -> None:
        self.started = False
        """Whether the clip's first frame, which no layer resamples in time, has gone through."""
        self._maps = {} if maps is None else maps
        self._past: dict[str, torch.Tensor] = {}
        self._tiles: dict[tuple[int, int], FeatureCache] = {}

    def past(self, name: str, x: torch.Tensor, frames: int) -> torch.Tensor:
        """[B, C, frames, H, W], the last inputs of convolution `name` before its input x, [B, C, T, H, W]."""
        if name not in self._past:
            batch, channels, _, height, width = x.shape
            past = torch.empty(
                (batch, channels, frames, height, width),
                dtype=x.dtype,
                device=x.device,
                memory_format=torch.channels_last_3d,
            )
            self._past[name] = past.zero_()
        return self._past[name]

    def map(self, name: str, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor | None:
        """Memory for a map [B, C, T, H, W], channels last, until the next of that name; None if autograd wants it."""
        if torch.is_grad_enabled():
            return None
        flat, wanted = self._maps.get(name), math.prod(shape)
        if flat is None or flat.numel() < wanted or flat.dtype != like.dtype or flat.device != like.device:
            flat = self._maps[name] = torch.empty(wanted, dtype=like.dtype, device=like.device)
        batch, channels, *rest = shape
        return flat[:wanted].view(batch, *rest, channels).movedim(-1, 1)

    def tile(self, position: tuple[int, int]) -> FeatureCache:
        """The cache of the tile at (row, column)."""
        return self._tiles.setdefault(position, FeatureCache(self._maps))

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self._past.values()) + sum(t.nbytes for t in self._tiles.values())
