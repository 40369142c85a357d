"""Modulation per sample, per frame or per token, in one form."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def by_group(x: torch.Tensor, modulation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """View tokens and a modulation so that they broadcast.

    A modulation is [B or 1, G, C]: token s uses row s // (S / G). G = 1 is per sample, the number of frames is
    per frame (tokens run frame by frame), S is per token.

    x: [B, S, C] → [B, G, S/G, C]; modulation: [B or 1, G, C] → [B or 1, G, 1, C].
    """
    batch, tokens, channels = x.shape
    groups = modulation.shape[1]
    return x.reshape(batch, groups, tokens // groups, channels), modulation.unsqueeze(2)


def group_strides(tokens: int, modulation: torch.Tensor | None) -> tuple[int, int, int]:
    """How a kernel finds a token's row of a modulation: (stride over B, stride over G, tokens per group).

    modulation: [B or 1, G, C] of `tokens` tokens, channels dense.
    """
    return group_strides_of(tokens, None if modulation is None else (modulation.shape, modulation.stride()))


def group_strides_of(tokens: int, modulation: tuple[Sequence[int], Sequence[int]] | None) -> tuple[int, int, int]:
    """The same from a modulation's shape and strides."""
    if modulation is None:
        return 0, 0, 1
    (samples, groups, _), (stride_b, stride_g, _) = modulation
    return stride_b if samples > 1 else 0, stride_g, tokens // groups
