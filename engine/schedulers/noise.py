"""Drawing Gaussian noise, in diffusers' order of draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.errors import RequestError
from kinema.ops.common.transfer import to_device

Generators = torch.Generator | Sequence[torch.Generator]


def draw_noise(
    shape: Sequence[int],
    generator: Generators | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Standard normal noise of `shape` [B, ...] on `device`.

    Drawn where the generator lives (on the CPU without one, so that a seed means the same everywhere) and then
    moved. A sequence of generators draws one sample each; a sequence of one draws the whole batch.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = "cpu" if generator is None else generator.device
        return to_device(torch.randn(tuple(shape), generator=generator, dtype=dtype, device=source), device)
    if len(generator) == 1:
        return draw_noise(shape, generator[0], device=device, dtype=dtype)
    if len(generator) != shape[0]:
        raise RequestError(f"got {len(generator)} generators for a batch of {shape[0]}; pass one, or one per sample")
    one = (1, *shape[1:])
    return torch.cat([draw_noise(one, each, device=device, dtype=dtype) for each in generator])
