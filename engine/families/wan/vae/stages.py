"""The stages of encoder and decoder: names and channels of each resolution, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from kinema.checkpoints.weights import Tensors
from kinema.families.wan.vae.blocks import ResidualBlock
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.resample import Downsample, Upsample


@dataclass(frozen=True)
class DownStageSpec:
    """Names and channels of one resolution. halving: the downsampler's name, None in the last stage."""

    blocks: tuple[str, ...]
    halving: str | None
    into: int
    out: int
    temporal: bool
    shortcut: bool

    @staticmethod
    def all(config: WanVAEConfig) -> list[DownStageSpec]:
        """Wan 2.1 numbers blocks and downsamplers in one list, 2.2 nests them by stage."""
        specs = []
        dims = config.encoder_dims
        count = config.num_res_blocks
        for i, temporal in enumerate((*config.temperal_downsample, False)):
            last = i == len(config.dim_mult) - 1
            if config.is_residual:
                stage = f"encoder.down_blocks.{i}"
                blocks = tuple(f"{stage}.resnets.{j}" for j in range(count))
                halving = f"{stage}.downsampler"
            else:
                first = i * (count + 1)
                blocks = tuple(f"encoder.down_blocks.{first + j}" for j in range(count))
                halving = f"encoder.down_blocks.{first + count}"
            specs.append(
                DownStageSpec(blocks, None if last else halving, dims[i], dims[i + 1], temporal, config.is_residual)
            )
        return specs

    def shapes(self) -> Tensors:
        shapes: Tensors = {}
        for j, name in enumerate(self.blocks):
            shapes |= ResidualBlock.shapes(name, self.out if j else self.into, self.out)
        if self.halving is not None:
            shapes |= Downsample.shapes(self.halving, self.out, temporal=self.temporal)
        return shapes


@dataclass(frozen=True)
class UpStageSpec:
    """Names and channels of one resolution. doubling: the upsampler's name, None in the last stage.

    hidden: channels of the blocks; out: after the upsampler. late: time is not upsampled here or later.
    """

    blocks: tuple[str, ...]
    doubling: str | None
    into: int
    hidden: int
    out: int
    temporal: bool
    late: bool
    shortcut: bool

    @staticmethod
    def all(config: WanVAEConfig) -> list[UpStageSpec]:
        """Wan 2.1 halves the channels while it doubles the frame, 2.2 does so in the next stage's first block."""
        specs = []
        into = config.decoder_dims[0]
        doubles_time = (*config.temperal_downsample[::-1], False)
        for i, temporal in enumerate(doubles_time):
            stage = f"decoder.up_blocks.{i}"
            blocks = tuple(f"{stage}.resnets.{j}" for j in range(config.num_res_blocks + 1))
            hidden = out = config.decoder_dims[i + 1]
            doubling = None
            if i < len(config.dim_mult) - 1:
                doubling = f"{stage}.upsampler" if config.is_residual else f"{stage}.upsamplers.0"
                out = hidden if config.is_residual else hidden // 2
            shortcut = config.is_residual and doubling is not None
            late = not any(doubles_time[i:])
            specs.append(UpStageSpec(blocks, doubling, into, hidden, out, temporal, late, shortcut))
            into = out
        return specs

    def shapes(self) -> Tensors:
        shapes: Tensors = {}
        for j, name in enumerate(self.blocks):
            shapes |= ResidualBlock.shapes(name, self.hidden if j else self.into, self.hidden)
        if self.doubling is not None:
            shapes |= Upsample.shapes(self.doubling, self.hidden, self.out, temporal=self.temporal)
        return shapes
