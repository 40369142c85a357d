"""Pixels to latent moments: stages of residual blocks, each but the last ending in a halving."""

from __future__ import annotations

import torch

from kinema.checkpoints.weights import Stored, Tensors, Weights
from kinema.families.wan.vae.blocks import CausalConv, MidBlock, ResidualBlock, conv_shapes
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.resample import Downsample, average_down
from kinema.families.wan.vae.stages import DownStageSpec
from kinema.ops import Ops
from kinema.vae.feature_cache import FeatureCache


class DownStage:
    """Residual blocks and a downsampler; in Wan 2.2 beside a shortcut that averages."""

    def __init__(self, spec: DownStageSpec, weights: Weights, ops: Ops) -> None:
        self.spec = spec
        self.blocks = [ResidualBlock(weights, name, ops) for name in spec.blocks]
        self.halve = Downsample(weights, spec.halving, ops) if spec.halving is not None else None

    def __call__(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        h = x
        for block in self.blocks:
            h = block(h, cache)
        if self.halve is not None:
            h = self.halve(h, cache)
        if self.spec.shortcut:
            h = h + average_down(x, self.spec.out, 2 if self.spec.temporal else 1, 2 if self.halve else 1)
        return h


class Encoder:
    def __init__(self, config: WanVAEConfig, weights: Weights, ops: Ops) -> None:
        self.conv_in = CausalConv(weights, "encoder.conv_in", ops)
        self.stages = [DownStage(spec, weights, ops) for spec in DownStageSpec.all(config)]
        self.mid = MidBlock(weights, "encoder.mid_block", ops)
        self.conv_out = CausalConv(weights, "encoder.conv_out", ops, norm="encoder.norm_out")

    @staticmethod
    def shapes(config: WanVAEConfig) -> Tensors:
        dims = config.encoder_dims
        shapes = conv_shapes("encoder.conv_in", dims[0], config.in_channels, 3, 3, 3)
        for spec in DownStageSpec.all(config):
            shapes |= spec.shapes()
        shapes |= MidBlock.shapes("encoder.mid_block", dims[-1])
        shapes["encoder.norm_out.gamma"] = Stored((dims[-1], 1, 1, 1))
        return shapes | conv_shapes("encoder.conv_out", 2 * config.z_dim, dims[-1], 3, 3, 3)

    def __call__(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        """x: [B, in_channels, T, H, W], one frame to start a clip, then multiples of the temporal factor.

        Returns [B, 2·z_dim, T', H', W'] moments before `quant_conv`.
        """
        x = self.conv_in(x, cache)
        for stage in self.stages:
            x = stage(x, cache)
        x = self.conv_out(self.mid(x, cache), cache)
        cache.started = True
        return x
