"""The timesteps of a request's steps: known before the first, so they are sent and embedded once."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from kinema.ops.common.transfer import to_device


class Modulating(Protocol):
    """A denoiser that embeds timesteps apart from its forward."""

    def modulations(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What timesteps [R] or [R, G] are to the layers."""
        ...


class Timesteps:
    """What each step of a request feeds a denoiser for a sample, on its device.

    levels: [n], or [n, G] by group of tokens; on the CPU, int64 or fp32.
    """

    def __init__(self, levels: torch.Tensor, device: torch.device) -> None:
        self._levels = to_device(levels, device)
        distinct, groups = levels, None
        if levels.ndim == 2:  # many groups, but few timesteps: a clean frame's, and one for the others
            distinct, groups = torch.unique(levels, return_inverse=True)
            groups = to_device(groups, device)
        self._distinct, self._groups = to_device(distinct, device), groups
        self._embedded: WeakKeyDictionary[Modulating, tuple[torch.Tensor, ...]] = WeakKeyDictionary()

    def of(self, step: int, samples: int) -> torch.Tensor:
        """[B] or [B, G], for as many samples."""
        level = self._levels[step]
        return level.expand(samples, *level.shape)

    def embedded(self, denoiser: Modulating, step: int) -> tuple[torch.Tensor, ...]:
        """What they are to the denoiser's layers, [1, G, ...] each; those of all steps are computed by the first call.

        The same bits as each computed in its step: a row of a product does not depend on how many there are.
        """
        table = self._embedded.get(denoiser)
        if table is None:
            table = self._embedded[denoiser] = denoiser.modulations(self._distinct.unsqueeze(0))
        if self._groups is None:
            return tuple(entry[:, step : step + 1] for entry in table)
        return tuple(entry.index_select(1, self._groups[step]) for entry in table)
