"""Spatial tiling: overlapping tiles go through the VAE one by one and are blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kinema.request.tiling import Tiling

__all__ = ["TileGrid", "Tiling", "over_tiles"]


@dataclass(frozen=True)
class TileGrid:
    """Where tiles lie, as (height, width): size and stride in input positions, kept and blended in output positions."""

    size: tuple[int, int]
    stride: tuple[int, int]
    kept: tuple[int, int]
    blend: tuple[int, int]

    @staticmethod
    def of_decoder(tiling: Tiling, spatial: int, patch: int) -> TileGrid:
        """From latents to patches of pixels. spatial: pixels per latent; patch: pixels per output."""
        size, stride = (_divided(pair, spatial) for pair in (tiling.size, tiling.stride))
        kept, whole = (_divided(pair, patch) for pair in (tiling.stride, tiling.size))
        return TileGrid(size, stride, kept, (whole[0] - kept[0], whole[1] - kept[1]))

    @staticmethod
    def of_encoder(tiling: Tiling, scale: int) -> TileGrid:
        """From patches of pixels to latents. scale: patches per latent."""
        kept, whole = (_divided(pair, scale) for pair in (tiling.stride, tiling.size))
        return TileGrid(tiling.size, tiling.stride, kept, (whole[0] - kept[0], whole[1] - kept[1]))


def _divided(pair: tuple[int, int], by: int) -> tuple[int, int]:
    return pair[0] // by, pair[1] // by


def over_tiles(
    x: torch.Tensor, grid: TileGrid, run: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
) -> torch.Tensor:
    """`run(tile, (row, column))` over all tiles of x [B, C, T, H, W], put together as [B, C', T', H', W']."""
    rows = []
    above: list[torch.Tensor] = []
    for i, top in enumerate(range(0, x.shape[3], grid.stride[0])):
        row: list[torch.Tensor] = []
        for j, left in enumerate(range(0, x.shape[4], grid.stride[1])):
            tile = run(x[..., top : top + grid.size[0], left : left + grid.size[1]], (i, j))
            if above:
                tile = _blended(above[j], tile, grid.blend[0], dim=3)
            if row:
                tile = _blended(row[-1], tile, grid.blend[1], dim=4)
            row.append(tile)
        rows.append(torch.cat([tile[..., : grid.kept[0], : grid.kept[1]] for tile in row], dim=4))
        above = row
    return torch.cat(rows, dim=3)


def _blended(before: torch.Tensor, tile: torch.Tensor, extent: int, dim: int) -> torch.Tensor:
    """The tile, its first `extent` positions along `dim` faded in over the last ones of its neighbour."""
    size = tile.shape[dim]
    extent = min(before.shape[dim], size, extent)
    if extent == 0:
        return tile
    ramp = torch.arange(extent, dtype=tile.dtype, device=tile.device) / extent
    if dim == 3:
        ramp = ramp.unsqueeze(-1)
    end, start = before.narrow(dim, before.shape[dim] - extent, extent), tile.narrow(dim, 0, extent)
    return torch.cat((torch.lerp(end, start, ramp), tile.narrow(dim, extent, size - extent)), dim=dim)
