"""What encoding and decoding hold besides weights, in bytes, and how many frames they take at once."""

from __future__ import annotations

import torch

from kinema.families.base import Work
from kinema.families.geometry import LatentSize
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.stages import DownStageSpec, UpStageSpec
from kinema.request.generation import GenerationRequest
from kinema.request.tiling import Tiling

FP32 = torch.float32.itemsize

# x264's lookahead of 40 frames, its reference frames and those its threads work on.
LOOKAHEAD_FRAMES = 60

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
    frame_bytes = FP32 * batch * specs[-1].hidden * area
    return max(1, CHUNK_BYTES // (config.scale_factor_temporal * frame_bytes))


def smaller_whole(config: WanVAEConfig, frames: int, height: int, width: int) -> bool:
    """Whether a clip takes less memory if it goes through the late stages block by block, all its frames at once.

    That holds all frames of an activation and the past of one block, instead of one frame and the past of all blocks.
    frames: of the clip, in pixels; height, width: of its latents.
    """
    specs = UpStageSpec.all(config)
    early = sum(not spec.late for spec in specs)
    area, past, frame = height * width * 4**early, 0, 0
    for spec in specs[early:]:
        frame = spec.hidden * area
        past += len(spec.blocks) * PAST_OF_BLOCK * frame
        area *= 4
    return (frames + PAST_OF_BLOCK) * frame <= past


def work(
    config: WanVAEConfig, request: GenerationRequest, latent: LatentSize, encoded: int, *, native: bool, streamed: bool
) -> dict[str, Work]:
    """The stages "image" and "decode" of a completed request, if it has them.

    encoded: frames given to the encoder. native: the native CPU kernels convolve. streamed: as in `Model.work`.
    """
    num_frames, height, width = request.clip
    held: dict[str, Work] = {}
    if request.image is not None or request.video is not None:
        held["image"] = Work(encode_bytes(config, height, width, encoded) + 2 * frames_bytes(encoded, height, width))
    if request.output_type == "latent":
        return held
    together = max(1, min(latent[0] - 1, latents_at_once(config, request.samples, *latent[1:])))
    decoding = decode_bytes(
        config, *latent[1:], request.samples, request.tiling, together=together, image=latent[0] == 1, native=native
    )
    if streamed:  # a decoded chunk, three copies of it on its way to bytes, and what an encoder holds
        chunk = frames_bytes(min(num_frames, together * config.scale_factor_temporal), height, width)
        held["decode"] = Work(decoding + request.samples * (4 * chunk + encoder_bytes(num_frames, height, width)))
    else:  # the finished clip, an intermediate and the result
        clips = request.samples * frames_bytes(num_frames, height, width)
        held["decode"] = Work(max(decoding + clips, 3 * clips))
    return held


def decode_bytes(
    config: WanVAEConfig,
    height: int,
    width: int,
    batch: int,
    tiling: Tiling | None,
    *,
    together: int = 1,
    image: bool = False,
    native: bool = False,
) -> int:
    """`together` latent frames of (height, width) through the decoder, and the past that every convolution keeps.

    image: nothing follows the one frame, so there is no past.
    native: the native CPU kernels hold only what they read and write, in reused buffers.
    """
    tile_area, repeats = _tiles(config, height, width, tiling)
    specs = UpStageSpec.all(config)
    early = sum(not spec.late for spec in specs)
    frames, scale, past, largest, waiting, kept = together, 1, 0.0, 0.0, 0.0, 0.0
    for i, stage in enumerate(specs):
        if i == early:
            final = scale * 4 ** sum(late.doubling is not None for late in specs[i:]) * tile_area
            piece = frames_at_once(int(FP32 * batch * final * specs[-1].hidden), native=native)
            if piece < frames:  # the input, and the frames done so far
                entering = 0 if native else stage.into * scale * tile_area  # natively it is counted in `kept`
                waiting = frames * (entering + 2 * config.out_channels * final)
                frames = piece
        past += (2 * len(stage.blocks) + 1) * 2 * stage.hidden * scale * height * width * repeats
        area = scale * tile_area
        block = 2 * stage.hidden * frames if native else _block_activations(stage.into, stage.hidden, frames)
        largest = max(largest, waiting + kept + block * area)
        if stage.doubling is not None:
            grows = stage.temporal and not image
            if native and grows:  # the frames that the time convolution makes, and a copy in their order
                largest = max(largest, waiting + kept + 4 * stage.hidden * frames * area)
            frames *= 2 if grows else 1
            scale *= 4
            doubled = frames * scale * tile_area
            if native:
                kept += stage.out * doubled
            else:  # before the upsampler's convolution the activation has the new size and the old channels
                largest = max(largest, waiting + 2 * (stage.hidden + stage.out) * doubled)
    return int(FP32 * batch * (largest if image else past + largest))


def encode_bytes(config: WanVAEConfig, height: int, width: int, num_frames: int) -> int:
    """Frames of (height, width) pixels through the encoder, `scale_factor_temporal` at a time."""
    area, past, largest = height * width / config.patch**2, 0.0, 0.0
    frames = 1 if num_frames == 1 else config.scale_factor_temporal
    entering = 2 * config.in_channels * frames * area  # as given, and channels last
    for stage in DownStageSpec.all(config):
        past += (2 * len(stage.blocks) + 1) * 2 * stage.out * area
        largest = max(largest, _block_activations(stage.into, stage.out, frames) * area)
        if stage.halving is not None:
            frames = max(1, frames // (2 if stage.temporal else 1))
            area /= 4
    return int(FP32 * (entering + past + largest))


def encoder_bytes(num_frames: int, height: int, width: int) -> int:
    """What libx264 keeps: its lookahead and reference frames, at 1.5 bytes a pixel, twice over."""
    return min(num_frames, LOOKAHEAD_FRAMES) * 3 * height * width


def frames_bytes(num_frames: int, height: int, width: int) -> int:
    """The clip as pixels, once, in fp32."""
    return FP32 * 3 * num_frames * height * width


def _block_activations(into: int, out: int, frames: int) -> int:
    """Frames × channels alive in a residual block: in its second convolution, or in its first if that holds more.

    The second holds the block's input, the first's output, intermediates of the norm and the result; the first fewer
    of them. Both hold a copy of what they convolve, with two past frames before it.
    """
    second = out * (5 * frames + frames + 2)
    first = into * (2 * frames + frames + 2) + 2 * out * frames
    return max(first, second)


def _tiles(config: WanVAEConfig, height: int, width: int, tiling: Tiling | None) -> tuple[float, float]:
    """Latent positions of the largest tile, and the mean number of tiles over a position (each keeps its own past)."""
    if tiling is None:
        return height * width, 1.0
    covered, tile = 1.0, 1.0
    for extent, size, stride in zip((height, width), tiling.size, tiling.stride, strict=True):
        size, stride = size // config.scale_factor_spatial, stride // config.scale_factor_spatial
        covered *= sum(min(size, extent - start) for start in range(0, extent, stride)) / extent
        tile *= min(size, extent)
    return tile, covered
