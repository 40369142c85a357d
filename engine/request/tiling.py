"""Decoding in spatial tiles, as a request asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from kinema.errors import RequestError
from kinema.fields.values import check_fields, whole


@dataclass(frozen=True)
class Tiling:
    """Tiles of `min` pixels every `stride` pixels, for clips larger than one tile; the difference overlaps.

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

    def check(self, factor: int) -> None:
        """Raise RequestError unless tiles begin and end on latent positions, which are `factor` pixels apart."""
        if any(n % factor for n in (*self.size, *self.stride)):
            raise RequestError(f"tile sizes and strides must be multiples of {factor} pixels, got {self}")
