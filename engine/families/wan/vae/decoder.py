"""Latents to pixels: stages of residual blocks, each but the last ending in a doubling."""

from __future__ import annotations

import torch

from kinema.buffers.heap import return_freed_bytes
from kinema.checkpoints.weights import Stored, Tensors, Weights
from kinema.families.wan.vae.blocks import CausalConv, MidBlock, ResidualBlock, conv_shapes
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.memory import frames_at_once
from kinema.families.wan.vae.resample import Upsample, duplicate_up
from kinema.families.wan.vae.stages import UpStageSpec
from kinema.ops import Ops
from kinema.vae.feature_cache import FeatureCache


class UpStage:
    """Residual blocks and an upsampler; in Wan 2.2 beside a shortcut that repeats."""

    def __init__(self, spec: UpStageSpec, weights: Weights, ops: Ops) -> None:
        self.spec = spec
        self.blocks = [ResidualBlock(weights, name, ops) for name in spec.blocks]
        self.double = Upsample(weights, spec.doubling, ops) if spec.doubling is not None else None

    def __call__(self, x: torch.Tensor, cache: FeatureCache, *, together: int | None = None) -> torch.Tensor:
        """x: [B, C, T, H, W], which may be overwritten → [B, C', T or 2T, 2H, 2W], or of x's size in the last.

        together: x is the whole clip, and this many of its frames go through a block at a time.
        """
        h = x
        for block in self.blocks:
            in_place = h is not x or not self.spec.shortcut
            if together is None:
                h = block(h, cache, in_place=in_place)
            else:
                h = _over_time(block, h, cache, together, in_place=in_place)
        if self.double is not None:
            h = self.double(h, cache)
        if self.spec.shortcut:
            time = 2 if self.spec.temporal else 1
            repeated = duplicate_up(x, self.spec.out, time, 2)
            h = h + (repeated if cache.started else repeated[:, :, time - 1 :])
        return h


class Decoder:
    def __init__(self, config: WanVAEConfig, weights: Weights, ops: Ops) -> None:
        self.conv_in = CausalConv(weights, "decoder.conv_in", ops)
        self.mid = MidBlock(weights, "decoder.mid_block", ops)
        stages = [UpStage(spec, weights, ops) for spec in UpStageSpec.all(config)]
        self.early, self.late = ([stage for stage in stages if stage.spec.late == late] for late in (False, True))
        self.conv_out = CausalConv(weights, "decoder.conv_out", ops, norm="decoder.norm_out")

    @staticmethod
    def shapes(config: WanVAEConfig) -> Tensors:
        dims = config.decoder_dims
        shapes = conv_shapes("decoder.conv_in", dims[0], config.z_dim, 3, 3, 3)
        shapes |= MidBlock.shapes("decoder.mid_block", dims[0])
        for spec in UpStageSpec.all(config):
            shapes |= spec.shapes()
        shapes["decoder.norm_out.gamma"] = Stored((dims[-1], 1, 1, 1))
        return shapes | conv_shapes("decoder.conv_out", config.out_channels, dims[-1], 3, 3, 3)

    def __call__(self, z: torch.Tensor, cache: FeatureCache, *, last: bool = False) -> torch.Tensor:
        """z: [B, z_dim, T, H, W] after `post_quant_conv`, one frame to start a clip, then any number.

        last: nothing of the clip follows. Returns [B, out_channels, T', H', W'], T' = 1 for the first frame, then T ·
        the temporal factor.
        """
        x = self.begin(z, cache, last=last)
        pieces = torch.split(x, self._together(x), dim=2)
        frames = []
        for i, piece in enumerate(pieces):
            cache.last = last and i == len(pieces) - 1
            frames.append(self._finish(piece, cache))
        return frames[0] if len(frames) == 1 else torch.cat(frames, dim=2)

    def begin(self, z: torch.Tensor, cache: FeatureCache, *, last: bool) -> torch.Tensor:
        """The early stages. Later ones still look back in time, but do not upsample it."""
        cache.last = last
        x = self.mid(self.conv_in(z, cache), cache)
        for stage in self.early:
            x = stage(x, cache)
        cache.started = True
        return x

    def _finish(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        for stage in self.late:
            x = stage(x, cache)
        return self.conv_out(x, cache)

    def finish_whole(self, x: torch.Tensor) -> torch.Tensor:
        """The late stages over a whole clip, block by block."""
        cache, together = FeatureCache(), self._together(x)
        cache.started = True
        for stage in self.late:
            x = stage(x, cache, together=together)
        cache.last = True
        return self.conv_out(x, cache)

    def _together(self, x: torch.Tensor) -> int:
        doublings = sum(stage.double is not None for stage in self.late)
        frame = (x.shape[0] * x.shape[3] * x.shape[4] << 2 * doublings) * self.late[-1].spec.hidden * x.element_size()
        return frames_at_once(frame, native=self.conv_out.ops.plan.backend("conv3d").startswith("cpu"))


def _over_time(
    block: ResidualBlock, x: torch.Tensor, cache: FeatureCache, together: int, *, in_place: bool
) -> torch.Tensor:
    """Run a block over a whole clip; its past is kept only that long. in_place: the result may be x."""
    done = []
    pieces = torch.split(x, together, dim=2)
    for i, piece in enumerate(pieces):
        cache.last = i == len(pieces) - 1
        done.append(block(piece, cache, in_place=in_place))
    return_freed_bytes()  # the pasts, and the holes that they leave
    return x if all(a is b for a, b in zip(done, pieces, strict=True)) else torch.cat(done, dim=2)
