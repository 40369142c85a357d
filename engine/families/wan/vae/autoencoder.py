"""AutoencoderKLWan: the causal video VAE of Wan 2.1 and 2.2, a clip at a time or chunk by chunk.

Every convolution looks only at the past, so a clip can pass in chunks with the same result: its first frame
alone, then any number. Wan Team 2025, arXiv 2503.20314, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Literal

import torch

from kinema.buffers.heap import return_freed_bytes
from kinema.checkpoints.weights import Tensors, Weights
from kinema.errors import RequestError
from kinema.families.wan.vae.blocks import CausalConv, conv_shapes
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.decoder import Decoder
from kinema.families.wan.vae.encoder import Encoder
from kinema.families.wan.vae.memory import latents_at_once, smaller_whole
from kinema.families.wan.vae.resample import patchify, unpatchify
from kinema.fields.diffusers_names import DiffusersNames
from kinema.fields.values import dense, of_kind
from kinema.ops import Ops
from kinema.vae.feature_cache import FeatureCache
from kinema.vae.posterior import Posterior
from kinema.vae.tiling import TileGrid, Tiling, over_tiles

__all__ = ["FeatureCache", "Posterior", "Tiling", "WanVAE", "WanVAEConfig", "tensor_shapes"]


def tensor_shapes(config: WanVAEConfig) -> Tensors:
    """Every tensor of an AutoencoderKLWan checkpoint."""
    z = config.z_dim
    quant = conv_shapes("quant_conv", 2 * z, 2 * z, 1, 1, 1) | conv_shapes("post_quant_conv", z, z, 1, 1, 1)
    return Encoder.shapes(config) | quant | Decoder.shapes(config)


class WanVAE(DiffusersNames):
    """Encodes videos to latents and decodes latents to frames, in fp32 whatever the model's precision.

    Nothing of a clip stays here: its past lives in a FeatureCache. The weights of a half are packed when it is first
    used, since text-to-video needs no encoder; a trainer builds a new VAE after each change of its parameters.
    """

    def __init__(self, config: WanVAEConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.device = ops.device
        self._weights = weights
        self._ops = ops
        self.quant_conv = CausalConv(weights, "quant_conv", ops)
        self.post_quant_conv = CausalConv(weights, "post_quant_conv", ops)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=ops.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )

    @cached_property
    def encoder(self) -> Encoder:
        encoder = Encoder(self.config, self._weights, self._ops)
        return_freed_bytes()  # packing leaves the heap full of holes
        return encoder

    @cached_property
    def decoder(self) -> Decoder:
        decoder = Decoder(self.config, self._weights, self._ops)
        return_freed_bytes()  # packing leaves the heap full of holes
        return decoder

    def pack(self, half: Literal["encoder", "decoder"]) -> None:
        """Pack the weights of one half, if not done yet."""
        getattr(self, half)

    def packed(self, half: Literal["encoder", "decoder"]) -> bool:
        return half in vars(self)

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The encoder's latents [B, z_dim, T, H, W] as a transformer wants them: (x − mean)/std per channel."""
        return (latents - self._mean) / self._std

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """A transformer's latents [B, z_dim, T, H, W] as the decoder wants them."""
        return latents * self._std + self._mean

    def decode(
        self,
        latents: torch.Tensor,
        *,
        chunk: int | Literal["auto"] | None = "auto",
        tiling: Tiling | None = None,
        clamp: bool = True,
    ) -> torch.Tensor:
        """All frames, [B, 3, 1 + (T − 1)·ft, H·fs, W·fs]. Arguments as in `decode_chunks`.

        A clip of few frames goes through the late stages block by block, where that takes less memory than their past.
        """
        self._check_latents(latents)
        if (
            tiling is None
            and not torch.is_grad_enabled()
            and smaller_whole(self.config, self._frames(latents), *latents.shape[3:])
        ):
            return self._decode_whole(latents, self._chunk(latents, chunk), clamp)
        chunks = self.decode_chunks(latents, chunk=chunk, tiling=tiling, clamp=clamp)
        first = next(chunks)
        if first.requires_grad:
            return torch.cat((first, *chunks), dim=2)
        video = first.new_empty((*first.shape[:2], self._frames(latents), *first.shape[3:]))
        done = 0
        for part in chain((first,), chunks):
            video[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        return video

    def decode_chunks(
        self,
        latents: torch.Tensor,
        *,
        chunk: int | Literal["auto"] | None = "auto",
        tiling: Tiling | None = None,
        clamp: bool = True,
    ) -> Iterator[torch.Tensor]:
        """Frames as they are decoded: one for the first latent frame, then `chunk`·ft at a time.

        latents: [B, z_dim, T, H, W], floating, denormalised. chunk: latent frames at a time after the first, None
        for all, "auto" for one, or more of small pictures; the result is the same, memory grows with it. Yields what
        `decode_frames` returns.
        """
        self._check_latents(latents)
        chunk = self._chunk(latents, chunk)
        cache = FeatureCache()
        for start, stop in _chunks(latents.shape[2], chunk):
            part, last = latents[:, :, start:stop], stop == latents.shape[2]
            yield self.decode_frames(part, cache, tiling=tiling, clamp=clamp, last=last)

    def decode_frames(
        self,
        latents: torch.Tensor,
        cache: FeatureCache,
        *,
        tiling: Tiling | None = None,
        clamp: bool = True,
        last: bool = False,
    ) -> torch.Tensor:
        """The next frames of the clip that `cache` belongs to; a new cache starts a clip, with one latent frame.

        latents: [B, z_dim, t, H, W]. clamp: False leaves values as the decoder gives them, for training. last: nothing
        of the clip follows, so no past is kept. Returns fp32 [B, 3, 1 or t·ft, H·fs, W·fs] in [−1, 1].
        """
        self._check_latents(latents)
        config = self.config
        z = self.post_quant_conv(self._entering(latents, cache), cache)
        height, width = (n * config.scale_factor_spatial for n in z.shape[3:])
        tiling = _needed(tiling, config, height, width)
        if tiling is not None:
            grid = TileGrid.of_decoder(tiling, config.scale_factor_spatial, config.patch)
            frames = over_tiles(z, grid, lambda tile, position: self.decoder(tile, cache.tile(position), last=last))
            cache.started = True
        else:
            frames = self.decoder(z, cache, last=last)
        return self._pixels(frames, clamp)

    def _decode_whole(self, latents: torch.Tensor, chunk: int | None, clamp: bool) -> torch.Tensor:
        """The late stages once over all frames, which the early ones make chunk by chunk."""
        # passed on without a name here, so that it can be freed: it is a quarter of what the late stages take
        return self._pixels(self.decoder.finish_whole(self._begin_whole(latents, chunk)), clamp)

    def _begin_whole(self, latents: torch.Tensor, chunk: int | None) -> torch.Tensor:
        """All frames as the early stages leave them."""
        cache, whole, done = FeatureCache(), None, 0
        for start, stop in _chunks(latents.shape[2], chunk):
            last = stop == latents.shape[2]
            z = self.post_quant_conv(self._entering(latents[:, :, start:stop], cache), cache)
            x = self.decoder.begin(z, cache, last=last)
            if latents.shape[2] == 1:
                return x
            if whole is None:
                batch, channels, _, height, width = x.shape
                whole = x.new_empty(batch, self._frames(latents), height, width, channels).movedim(-1, 1)
            if last:
                del cache, z
                return_freed_bytes()  # the holes of small activations would not fit the last frames and stages
            whole[:, :, done : done + x.shape[2]] = x
            done += x.shape[2]
        assert whole is not None
        return whole

    def _chunk(self, latents: torch.Tensor, chunk: int | Literal["auto"] | None) -> int | None:
        batch, _, _, height, width = latents.shape
        return latents_at_once(self.config, batch, height, width) if chunk == "auto" else chunk

    def _pixels(self, frames: torch.Tensor, clamp: bool) -> torch.Tensor:
        frames = unpatchify(frames, self.config.patch)
        return frames.clamp(-1.0, 1.0) if clamp else frames

    def _frames(self, latents: torch.Tensor) -> int:
        return 1 + (latents.shape[2] - 1) * self.config.scale_factor_temporal

    def encode(self, video: torch.Tensor, *, chunk: int | None = 4, tiling: Tiling | None = None) -> Posterior:
        """The latents' distribution, not normalised. Arguments as in `encode_moments`."""
        return Posterior.from_moments(self.encode_moments(video, chunk=chunk, tiling=tiling))

    def encode_moments(
        self, video: torch.Tensor, *, chunk: int | None = 4, tiling: Tiling | None = None
    ) -> torch.Tensor:
        """Means and log variances, [B, 2·z_dim, 1 + (T − 1)/ft, H/fs, W/fs].

        video: [B, 3, T, H, W], floating in [−1, 1], with T − 1 a multiple of ft and H, W of fs. chunk: frames
        at a time after the first, a multiple of ft, None for all; the result is the same, memory grows with it.
        """
        self._check_video(video, chunk)
        cache = FeatureCache()
        moments = [
            self.encode_frames(video[:, :, start:stop], cache, tiling=tiling)
            for start, stop in _chunks(video.shape[2], chunk)
        ]
        return torch.cat(moments, dim=2)

    def encode_frames(self, video: torch.Tensor, cache: FeatureCache, *, tiling: Tiling | None = None) -> torch.Tensor:
        """Moments of the next frames of the clip that `cache` belongs to; a new cache starts a clip, with one frame.

        video: [B, 3, 1 or t·ft, H, W]. Returns [B, 2·z_dim, 1 or t, H/fs, W/fs].
        """
        config = self.config
        x = patchify(self._entering(video, cache), config.patch)
        tiling = _needed(tiling, config, video.shape[3], video.shape[4])
        if tiling is None:
            return self.quant_conv(self.encoder(x, cache), cache)
        moments = over_tiles(
            x,
            TileGrid.of_encoder(tiling, config.conv_scale),
            lambda tile, position: self.quant_conv(self.encoder(tile, cache.tile(position)), cache),
        )
        cache.started = True
        return moments

    def _entering(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        """x on the layers' device and in their dtype: fp32, or fp64 if x is."""
        if not x.is_floating_point():
            raise RequestError(f"got {x.dtype} values, wanted floating latents, or frames in [-1, 1]")
        if not cache.started and x.shape[2] != 1:
            raise RequestError(f"a clip starts with one frame alone, got {x.shape[2]}")
        return x.to(self.device, torch.promote_types(x.dtype, torch.float32))

    def _check_latents(self, latents: torch.Tensor) -> None:
        if (
            dense("latents", latents, floating=False).ndim != 5
            or latents.shape[1] != self.config.z_dim
            or 0 in latents.shape
        ):
            raise RequestError(f"latents are {tuple(latents.shape)}, wanted [B, {self.config.z_dim}, T, H, W]")

    def _check_video(self, video: torch.Tensor, chunk: int | None) -> None:
        channels, time, space = (
            self.config.pixel_channels, self.config.scale_factor_temporal, self.config.scale_factor_spatial
        )  # fmt: skip
        if dense("video", video, floating=False).ndim != 5 or video.shape[1] != channels or 0 in video.shape:
            raise RequestError(f"video is {tuple(video.shape)}, wanted [B, {channels}, T, H, W]")
        frames, height, width = video.shape[2:]
        if (frames - 1) % time or height % space or width % space:
            nearest = (frames - 1) // time * time + 1, *(max(n // space, 1) * space for n in (height, width))
            raise RequestError(
                f"video has {frames} frames of {height}x{width}: wanted a multiple of {time} plus 1 frames, of "
                f"multiples of {space}, for example {nearest[0]} frames of {nearest[1]}x{nearest[2]}"
            )
        if chunk is not None and chunk % time:
            raise RequestError(f"chunk={chunk} must be a multiple of {time} frames")


def _needed(tiling: Tiling | None, config: WanVAEConfig, height: int, width: int) -> Tiling | None:
    """The tiling, if frames of this many pixels are larger than a tile."""
    if tiling is None:
        return None
    of_kind("tiling", tiling, Tiling).check(config.scale_factor_spatial)
    return tiling if height > tiling.min_height or width > tiling.min_width else None


def _chunks(frames: int, chunk: int | None) -> Iterator[tuple[int, int]]:
    """The first frame alone, then `chunk` at a time (None: all), as (start, stop)."""
    if chunk is not None and chunk < 1:
        raise RequestError(f"chunk={chunk} must be at least 1, or None for all frames at once")
    yield 0, 1
    step = frames if chunk is None else chunk
    for start in range(1, frames, step):
        yield start, min(start + step, frames)
