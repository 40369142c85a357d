"""The past frames that causal convolutions keep between the chunks of a clip."""

from __future__ import annotations

import torch

from kinema.buffers.activations import ActivationBuffers


class FeatureCache:
    """Past frames of every causal convolution, for one clip on its way through the encoder or the decoder.

    Belongs to a request. Zeros start a clip; the convolutions overwrite them in place. With tiling each tile has
    a cache of its own inside this one, so a clip keeps the same tiling from its first chunk to its last. The
    activation buffers are here too, shared by all tiles: new ones for each frame would leave the heap full of holes.
    """

    def __init__(self, buffers: ActivationBuffers | None = None) -> None:
        self.started = False
        """Whether the clip's first frame, which no layer resamples in time, has gone through."""
        self.last = False
        """Whether the current chunk is the last: each past is freed once it has been read."""
        self.buffers = ActivationBuffers() if buffers is None else buffers
        self._past: dict[str, torch.Tensor] = {}
        self._tiles: dict[tuple[int, int], FeatureCache] = {}

    def past(self, name: str, x: torch.Tensor, frames: int) -> torch.Tensor | None:
        """[B, C, frames, H, W], the last inputs of convolution `name` before its input x, [B, C, T, H, W].

        None: they are zeros, and x will not be needed.
        """
        if self.last:
            return self._past.pop(name, None)
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

    def tile(self, position: tuple[int, int]) -> FeatureCache:
        """The cache of the tile at (row, column)."""
        return self._tiles.setdefault(position, FeatureCache(self.buffers))

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self._past.values()) + sum(t.nbytes for t in self._tiles.values())
