"""Halving and doubling of frames and of time, learned and by regrouping.

A clip's first frame stands alone in time: no layer halves or doubles it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kinema.checkpoints.weights import Tensors, Weights
from kinema.families.wan.vae.blocks import CausalConv, conv_shapes
from kinema.ops import Ops
from kinema.vae.feature_cache import FeatureCache


class Downsample:
    """Halves H and W by a strided convolution, then T by another if it has the weights for it."""

    def __init__(self, weights: Weights, name: str, ops: Ops) -> None:
        self.conv = CausalConv(weights, f"{name}.resample.1", ops, stride=(1, 2, 2), padding=(0, 1, 0, 1))
        self.time_conv: CausalConv | None = None
        if f"{name}.time_conv.weight" in weights:
            self.time_conv = CausalConv(weights, f"{name}.time_conv", ops, stride=(2, 1, 1))

    @staticmethod
    def shapes(name: str, channels: int, *, temporal: bool) -> Tensors:
        shapes = conv_shapes(f"{name}.resample.1", channels, channels, 3, 3)
        return shapes | conv_shapes(f"{name}.time_conv", channels, channels, 3, 1, 1) if temporal else shapes

    def __call__(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        """x: [B, C, T, H, W], T even except for the first frame → [B, C, T or T/2, H/2, W/2]."""
        x = self.conv(x, cache)
        if self.time_conv is None:
            return x
        if cache.started:
            return self.time_conv(x, cache)
        past = self.time_conv.past(x, cache)
        if past is not None:
            past.copy_(x)
        return x


class Upsample:
    """Doubles T by a convolution to two frames if it has the weights for it, then H and W by nearest neighbour."""

    def __init__(self, weights: Weights, name: str, ops: Ops) -> None:
        self.conv = CausalConv(weights, f"{name}.resample.1", ops, upsample=2)
        self.time_conv: CausalConv | None = None
        if f"{name}.time_conv.weight" in weights:
            self.time_conv = CausalConv(weights, f"{name}.time_conv", ops)

    @staticmethod
    def shapes(name: str, channels: int, out: int, *, temporal: bool) -> Tensors:
        shapes = conv_shapes(f"{name}.resample.1", out, channels, 3, 3)
        return shapes | conv_shapes(f"{name}.time_conv", 2 * channels, channels, 3, 1, 1) if temporal else shapes

    def __call__(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        """x: [B, C, T, H, W] → [B, C', T or 2T, 2H, 2W].

        The time convolution never sees the first frame: the second chunk's past is zeros.
        """
        if self.time_conv is not None and cache.started:
            x = interleave(self.time_conv(x, cache))
        return self.conv(x, cache, out=self.conv.buffer(x, cache, self.conv.name))


def interleave(x: torch.Tensor) -> torch.Tensor:
    """[B, 2·C, T, H, W] → [B, C, 2·T, H, W]: the halves of the channels are the even and the odd frames."""
    batch, channels, frames, height, width = x.shape
    halves = x.movedim(1, -1).reshape(batch, frames, height, width, 2, channels // 2)
    return halves.movedim(4, 2).reshape(batch, 2 * frames, height, width, channels // 2).movedim(-1, 1)


def average_down(x: torch.Tensor, channels: int, time: int, space: int) -> torch.Tensor:
    """Fold blocks of `time`·`space`² positions into channels, then average neighbouring channels.

    x: [B, C, T, H, W], behind zeros if `time` does not divide T → [B, channels, ⌈T/time⌉, H/space, W/space].
    """
    if x.shape[2] % time:
        x = F.pad(x, (0, 0, 0, 0, time - x.shape[2] % time, 0))
    batch, into, frames, height, width = x.shape
    t, h, w = frames // time, height // space, width // space
    x = x.movedim(1, -1).reshape(batch, t, time, h, space, w, space, into)
    # [B, T', H', W', C, time, space, space], whose last four axes are the channels to average
    folded = x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, t, h, w, channels, -1)
    return folded.mean(-1).movedim(-1, 1)


def duplicate_up(x: torch.Tensor, channels: int, time: int, space: int) -> torch.Tensor:
    """Repeat channels, then spread them over blocks of `time`·`space`² positions: average_down, turned around.

    x: [B, C, T, H, W] → [B, channels, T·time, H·space, W·space].
    """
    batch, into, frames, height, width = x.shape
    repeated = x.movedim(1, -1).repeat_interleave(channels * time * space**2 // into, dim=-1)
    spread = repeated.view(batch, frames, height, width, channels, time, space, space)
    # [B, T, time, H, space, W, space, channels]
    ordered = spread.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return ordered.reshape(batch, frames * time, height * space, width * space, channels).movedim(-1, 1)


def patchify(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels to channels: [B, C, T, H, W] → [B, C·patch², T, H/patch, W/patch], ordered (C, column, row)."""
    if patch == 1:
        return x
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames, height // patch, patch, width // patch, patch)
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Channels to pixels: the inverse of `patchify`."""
    if patch == 1:
        return x
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels // patch**2, patch, patch, frames, height, width)
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
