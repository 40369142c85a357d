"""AutoencoderKLWan's config.json, and what cannot be built from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from kinema.errors import CheckpointError
from kinema.fields.config import Length, Range, from_config

# Wan 2.1's latent statistics, the default of published configs that leave them out.
WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

# Published, but without effect: decoded frames are always clamped to [−1, 1].
IGNORED_KEYS = frozenset({"clip_output"})


@dataclass(frozen=True)
class WanVAEConfig:
    """A video VAE of Wan 2.1 (plain) or 2.2 (residual, on patches of pixels).

    in_channels, out_channels: what the convolutions see, pixel channels · patch_size². temperal_downsample: per
    halving of the frame, whether time is halved too (spelt as published). dropout: of training, not applied.
    Raises CheckpointError where the layers would not fit together.
    """

    base_dim: Annotated[int, Range(2, 10_000)] = 96
    decoder_base_dim: Annotated[int, Range(2, 10_000)] | None = None
    z_dim: Annotated[int, Range(1, 1000)] = 16
    dim_mult: Annotated[tuple[int, ...], Range(1, 64), Length(1, 8)] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Range(1, 64)] = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: Annotated[tuple[bool, ...], Length(0, 8)] = (False, True, True)
    dropout: Annotated[float, Range(0, 1)] = 0.0
    latents_mean: Annotated[tuple[float, ...], Range(-1e6, 1e6)] = WAN21_MEAN
    latents_std: Annotated[tuple[float, ...], Range(1e-6, 1e6)] = WAN21_STD
    is_residual: bool = False
    in_channels: Annotated[int, Range(1, 10_000)] = 3
    out_channels: Annotated[int, Range(1, 10_000)] = 3
    patch_size: Annotated[int, Range(1, 64)] | None = None
    scale_factor_temporal: Annotated[int, Range(1, 4)] = 4
    scale_factor_spatial: Annotated[int, Range(1, 8192)] = 8

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> WanVAEConfig:
        # published configs say null for "the default"
        return from_config(WanVAEConfig, config, ignore=IGNORED_KEYS, null_is_default=True)

    def __post_init__(self) -> None:
        problems = [*self._size_problems(), *self._scale_problems()]
        if not problems and self.is_residual:
            problems += self._shortcut_problems()
        if problems:
            raise CheckpointError(f"this VAE cannot be built: {'; '.join(problems)}")

    @property
    def patch(self) -> int:
        """Side of the pixel patches that are channels to the convolutions."""
        return 1 if self.patch_size is None else self.patch_size

    @property
    def pixel_channels(self) -> int:
        return self.in_channels // self.patch**2

    @property
    def conv_scale(self) -> int:
        """How much the convolutions shrink a frame, patches apart."""
        return self.scale_factor_spatial // self.patch

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Channels before the first stage, then after each."""
        return tuple(self.base_dim * m for m in (1, *self.dim_mult))

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Channels before the first stage, then of the blocks of each."""
        base = self.base_dim if self.decoder_base_dim is None else self.decoder_base_dim
        return tuple(base * m for m in (self.dim_mult[-1], *self.dim_mult[::-1]))

    def _size_problems(self) -> list[str]:
        problems = []
        if self.in_channels % self.patch**2 or self.out_channels != self.in_channels:
            problems.append(
                f"in_channels={self.in_channels} and out_channels={self.out_channels} must be one multiple of "
                f"patch_size² = {self.patch**2}"
            )
        if self.attn_scales:
            problems.append(
                f"attn_scales={list(self.attn_scales)}: attention outside the middle block is not supported"
            )
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.z_dim:
                problems.append(f"{name} has {len(values)} values, wanted z_dim={self.z_dim}")
        return problems

    def _scale_problems(self) -> list[str]:
        halvings = len(self.dim_mult) - 1
        if len(self.temperal_downsample) != halvings:
            return [f"temperal_downsample has {len(self.temperal_downsample)} values, wanted {halvings} for dim_mult"]
        problems = []
        # frames are encoded four at a time, as diffusers does
        if sum(self.temperal_downsample) > 2:
            problems.append(f"temperal_downsample={list(self.temperal_downsample)} halves time more than twice")
        temporal, spatial = 2 ** sum(self.temperal_downsample), 2**halvings * self.patch
        if self.scale_factor_temporal != temporal:
            problems.append(f"scale_factor_temporal={self.scale_factor_temporal}, the layers shrink time by {temporal}")
        if self.scale_factor_spatial != spatial:
            problems.append(f"scale_factor_spatial={self.scale_factor_spatial}, the layers shrink frames by {spatial}")
        return problems

    def _shortcut_problems(self) -> list[str]:
        """A residual stage regroups channels and positions, which must come out even."""
        problems = []
        last = len(self.dim_mult) - 1
        temporal = (*self.temperal_downsample, False)
        for i in range(last + 1):
            into, out = self.encoder_dims[i : i + 2]
            if into * (1 if i == last else 8 if temporal[i] else 4) % out:
                problems.append(f"encoder stage {i} cannot average {into} channels into {out}")
        for i in range(last):
            into, out = self.decoder_dims[i : i + 2]
            if out * (8 if temporal[last - 1 - i] else 4) % into:
                problems.append(f"decoder stage {i} cannot spread {into} channels over {out}")
        return problems
