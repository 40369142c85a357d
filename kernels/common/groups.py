"""Modulation per sample, per frame or per token, as one shape."""

from __future__ import annotations

import torch


def by_group(x: torch.Tensor, modulation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """View tokens and a modulation so that they broadcast.

    A modulation is [B, G, C]: token s uses row s // (S / G). G = 1 is per sample, the number of frames is
    per frame (tokens run frame by frame), S is per token.

    x: [B, S, C] → [B, G, S/G, C]; modulation: [B, G, C] → [B, G, 1, C].
    """
    batch, tokens, channels = x.shape
    groups = modulation.shape[1]
    if modulation.shape[0] not in (1, batch) or modulation.shape[2] != channels or tokens % groups:
        raise ValueError(
            f"modulation {tuple(modulation.shape)} does not fit tokens {tuple(x.shape)}: "
            "wanted [B or 1, G, C] with the same C and a G that divides S"
        )
    return x.reshape(batch, groups, tokens // groups, channels), modulation.unsqueeze(2)


def group_strides(x: torch.Tensor, modulation: torch.Tensor | None) -> tuple[int, int, int]:
    """How a kernel finds a token's row of a modulation: (stride over B, stride over G, tokens per group).

    x: [B, S, C]; modulation: [B or 1, G, C], channels dense; refused as `by_group` does.
    """
    if modulation is None:
        return 0, 0, 1
    _, rows = by_group(x, modulation)
    stride_b = modulation.stride(0) if modulation.shape[0] > 1 else 0
    return stride_b, modulation.stride(1), x.shape[1] // rows.shape[1]
