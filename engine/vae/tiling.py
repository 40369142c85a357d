"""Spatial tiling: overlapping tiles go through the VAE one by one and are blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kinema.errors import RequestError
from kinema.vae.config import WanVAEConfig
from kinema.values import check_fields, whole


@dataclass(frozen=True)
class Tiling:
    """Tiles of `min` pixels every `stride` pixels, for clips larger than one tile; the rest overlaps.

    Names and defaults are those of diffusers' `enable_tiling`. When encoding with a VAE that folds pixels into
    patches the sizes count patches, as there.
    """

    min_height: int = 256
    min_width: int = 256
    stride_height: int = 192
    stride_width: int = 192

    def __post_init__(self) -> None:
        check_fields(self, dict.fromkeys(("min_height", "min_width", "stride_height", "stride_width"), whole))
        for axis, size, stride in zip(("height", "width"), self.size, self.stride, strict=True):
            if not 0 < stride <= size:
                raise RequestError(f"tile stride_{axis}={stride} must be positive and at most min_{axis}={size}")

    @property
    def size(self) -> tuple[int, int]:
        return self.min_height, self.min_width

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_height, self.stride_width

    def check(self, config: WanVAEConfig) -> None:
        """Raise RequestError unless tiles begin and end on latent positions."""
        factor = config.scale_factor_spatial
        if any(n % factor for n in (*self.size, *self.stride)):
            raise RequestError(f"tile sizes and strides must be multiples of {factor} pixels, got {self}")


@dataclass(frozen=True)
class TileGrid:
    """Where tiles lie, as (height, width): size and stride in input positions, kept and blended in output positions."""

    size: tuple[int, int]
    stride: tuple[int, int]
    kept: tuple[int, int]
    blend: tuple[int, int]

    @staticmethod
    def of_decoder(tiling: Tiling, config: WanVAEConfig) -> TileGrid:
        """From latents to patches of pixels."""
        size, stride = (_divided(pair, config.scale_factor_spatial) for pair in (tiling.size, tiling.stride))
        kept, whole = (_divided(pair, config.patch) for pair in (tiling.stride, tiling.size))
        return TileGrid(size, stride, kept, (whole[0] - kept[0], whole[1] - kept[1]))

    @staticmethod
    def of_encoder(tiling: Tiling, config: WanVAEConfig) -> TileGrid:
        """From patches of pixels to latents."""
        kept, whole = (_divided(pair, config.conv_scale) for pair in (tiling.stride, tiling.size))
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
