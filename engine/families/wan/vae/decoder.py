"""Latents to pixels: stages of residual blocks, each but the last ending in a doubling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kinema.buffers.machine import return_freed_bytes
from kinema.checkpoints.weights import Stored, Tensors, Weights
from kinema.families.wan.vae.blocks import CausalConv, MidBlock, ResidualBlock, conv_shapes
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.resample import Upsample, duplicate_up
from kinema.ops import Ops
from kinema.vae.feature_cache import FeatureCache

PIECE_BYTES = 32 << 20
"""Limit on an activation of the last stage: as many frames as fit go through the late stages at once, so that it stays
well below gigabytes and, on a CPU, near the caches."""

PAST_OF_BLOCK = 4  # frames: two for each convolution


def frames_at_once(frame_bytes: int, *, native: bool) -> int:
    """Frames of a chunk that go through the late stages at once. frame_bytes: one frame of an activation of the last.

    native: the native CPU kernels lay out and transform an input frame once per call, for all output frames that read
    it: two frames together take four transforms; one by one they take six, and 10 to 14 % longer.
    """
    return max(2 if native else 1, PIECE_BYTES // frame_bytes)


CHUNK_BYTES = 8 << 20
"""Limit on an activation of the last stage: as many latent frames as fit make a chunk, so that a chunk's overhead is
paid less often and activations still fit in a CPU's last-level cache."""


def latents_at_once(config: WanVAEConfig, batch: int, height: int, width: int) -> int:
    """Latent frames per chunk after the first. height, width: of the latents."""
    specs = UpStageSpec.all(config)
    area = height * width << 2 * sum(spec.doubling is not None for spec in specs)
    frame_bytes = torch.float32.itemsize * batch * specs[-1].hidden * area
    return max(1, CHUNK_BYTES // (config.scale_factor_temporal * frame_bytes))


def smaller_whole(config: WanVAEConfig, frames: int, height: int, width: int) -> bool:
    """Whether a clip takes less memory if it goes through the late stages block by block, all its frames at once.

    That holds all frames of an activation and the past of one block, instead of one frame and the past of all blocks.
    frames: of the clip, in pixels; height, width: of its latents.
    """
    specs = UpStageSpec.all(config)
    early = UpStageSpec.late(specs)
    area, past, frame = height * width * 4**early, 0, 0
    for spec in specs[early:]:
        frame = spec.hidden * area
        past += len(spec.blocks) * PAST_OF_BLOCK * frame
        area *= 4
    return (frames + PAST_OF_BLOCK) * frame <= past


@dataclass(frozen=True)
class UpStageSpec:
    """Names and channels of one resolution. doubling: the upsampler's name, None in the last stage.

    hidden: channels of the blocks; out: after the upsampler.
    """

    blocks: tuple[str, ...]
    doubling: str | None
    into: int
    hidden: int
    out: int
    temporal: bool
    shortcut: bool

    @staticmethod
    def all(config: WanVAEConfig) -> list[UpStageSpec]:
        """Wan 2.1 halves the channels while it doubles the frame, 2.2 does so in the next stage's first block."""
        specs = []
        into = config.decoder_dims[0]
        for i, temporal in enumerate((*config.temperal_downsample[::-1], False)):
            stage = f"decoder.up_blocks.{i}"
            blocks = tuple(f"{stage}.resnets.{j}" for j in range(config.num_res_blocks + 1))
            hidden = out = config.decoder_dims[i + 1]
            doubling = None
            if i < len(config.dim_mult) - 1:
                doubling = f"{stage}.upsampler" if config.is_residual else f"{stage}.upsamplers.0"
                out = hidden if config.is_residual else hidden // 2
            shortcut = config.is_residual and doubling is not None
            specs.append(UpStageSpec(blocks, doubling, into, hidden, out, temporal, shortcut))
            into = out
        return specs

    @staticmethod
    def late(specs: list[UpStageSpec]) -> int:
        """The index of the first late stage: from there on, time is not upsampled."""
        return max((i + 1 for i, spec in enumerate(specs) if spec.temporal), default=0)

    def shapes(self) -> Tensors:
        shapes: Tensors = {}
        for j, name in enumerate(self.blocks):
            shapes |= ResidualBlock.shapes(name, self.hidden if j else self.into, self.hidden)
        if self.doubling is not None:
            shapes |= Upsample.shapes(self.doubling, self.hidden, self.out, temporal=self.temporal)
        return shapes


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
        specs = UpStageSpec.all(config)
        stages = [UpStage(spec, weights, ops) for spec in specs]
        first = UpStageSpec.late(specs)
        self.early, self.late = stages[:first], stages[first:]
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
