"""The truth for `unpatchify`: reshape and permute."""

from __future__ import annotations

import torch

from kinema.ops.common import write_result
from kinema.ops.unpatchify import PatchOrder
from kinema.ops.unpatchify.check import checked


@checked
def unpatchify(
    x: torch.Tensor,
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
    order: PatchOrder,
    shape: tuple[int, int, int, int, int],
    out: torch.Tensor | None,
) -> torch.Tensor:
    if order == "patch_first":
        x = x.reshape(shape[0], *grid, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    else:
        x = x.reshape(shape[0], *grid, -1, *patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return write_result(x.reshape(shape).contiguous(), out)
