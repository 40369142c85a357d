"""What the stages of a run hold besides weights, in bytes: the tensors alive at the peak of each, and its FLOPs.

The counts are those of the reference ops, from an allocation trace of each stage. Ops that fuse more hold less; that is
counted for the native CPU kernels only.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from kinema.encoders.umt5 import UMT5Config
from kinema.families.base import MAX_TOKENS_PER_FORWARD, Work
from kinema.families.wan.config import WanConfig
from kinema.families.wan.flops import stage_flops
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.families.wan.vae.decoder import UpStageSpec, frames_at_once, latents_at_once
from kinema.families.wan.vae.encoder import DownStageSpec
from kinema.ops import Plan
from kinema.ops.common import Precision
from kinema.request.generation import GenerationRequest
from kinema.vae.tiling import Tiling

FP32 = torch.float32.itemsize

# In a block's MLP: x, its norm and the result.
MLP_ACTIVATIONS = 3
# In its attention: x, the whole qkv, q, and k with the copies that its norm and rotation make.
ATTENTION_ACTIVATIONS = 8
# Natively: x and the attention's result, and q and k; the qkv projection shares a buffer with the hidden layer.
NATIVE_BLOCK_ACTIVATIONS, NATIVE_BLOCK_OPERANDS = 2, 2
# The scratch of a native product on two threads: for each thread at most this many packed rows, as long as the deepest
# product's inner dimension, and the sums of this many columns (csrc/cpu/gemm.h).
NATIVE_ROWS, NATIVE_COLUMNS = 216, 768
# Latents, noise, predictions, guided prediction, scheduler history.
LATENT_TENSORS = 12
# x264's lookahead of 40 frames, its reference frames and those its threads work on.
LOOKAHEAD_FRAMES = 60


def work(
    transformer: WanConfig,
    vae: WanVAEConfig,
    text: UMT5Config | None,
    request: GenerationRequest,
    plan: Plan,
    *,
    streamed: bool,
    graphs: bool,
) -> dict[str, Work]:
    """What each stage of a completed request holds besides weights, and computes. Arguments as in `Model.work`."""
    precision, native = plan.target.precision, plan.backend("conv3d").startswith("cpu")
    num_frames, height, width = request.clip
    latent = (
        (num_frames - 1) // vae.scale_factor_temporal + 1,
        height // vae.scale_factor_spatial,
        width // vae.scale_factor_spatial,
    )
    tokens, rows = _text_tokens(request), request.samples * (1 + request.guided)
    pixels = frames_bytes(num_frames, height, width)
    prompts = request.prompts * (1 + request.guided)
    # a TI2V model encodes the image alone, an I2V model a whole clip that begins with it
    only_first = request.image is not None and transformer.in_channels == transformer.latent_channels
    encoded = 1 if only_first else num_frames
    held: dict[str, Work] = {}
    if request.image is not None or request.video is not None:
        held["image"] = Work(encode_bytes(vae, height, width, encoded) + 2 * frames_bytes(encoded, height, width))
    if request.prompt is not None and text is not None:
        held["text"] = Work(text_bytes(text, precision, prompts, tokens))
    if plan.backend("linear") == "cpu":
        operand = (plan.attention_dtype or precision.activations).itemsize
        held["denoise"] = Work(*native_denoise_bytes(transformer, latent, rows, tokens, operand))
    else:
        # one captured forward has all rows, of both guidance halves, whatever their number
        held["denoise"] = Work(denoise_bytes(transformer, precision, latent, rows, tokens, together=graphs))
    if request.output_type != "latent":
        together = max(1, min(latent[0] - 1, latents_at_once(vae, request.samples, *latent[1:])))
        decoding = decode_bytes(
            vae,
            latent[1],
            latent[2],
            request.samples,
            request.tiling,
            together=together,
            image=latent[0] == 1,
            native=native,
        )
        if streamed:  # a decoded chunk, three copies of it on its way to bytes, and what an encoder holds
            chunk = frames_bytes(min(num_frames, together * vae.scale_factor_temporal), height, width)
            held["decode"] = Work(decoding + request.samples * (4 * chunk + encoder_bytes(num_frames, height, width)))
        else:  # the finished clip, an intermediate and the result
            clips = request.samples * pixels
            held["decode"] = Work(max(decoding + clips, 3 * clips))
    counts = {"samples": request.samples, "rows": rows, "prompts": prompts, "text_tokens": tokens}
    flops = stage_flops(transformer, vae, text, latent, **counts, encoded=(encoded, height, width))
    return {stage: replace(work, flops=flops[stage]) for stage, work in held.items()}


def _text_tokens(request: GenerationRequest) -> int:
    """The most tokens that the transformer can read: a tokenizer makes at most one per character, and a few more."""
    given = [int(e.shape[1]) for e in (request.prompt_embeds, request.negative_prompt_embeds) if e is not None]
    texts = [request.prompt or "", request.negative_prompt or ""]
    longest = max(len(text) for texts_ in texts for text in ([texts_] if isinstance(texts_, str) else texts_))
    return max([*given, min(longest + 9, request.max_sequence_length or longest + 9)])


def denoise_bytes(
    config: WanConfig,
    precision: Precision,
    latent: tuple[int, int, int],
    rows: int,
    text_tokens: int,
    *,
    together: bool = False,
) -> int:
    """One forward of `rows` rows, in pieces as batching makes them, and the prompt's keys and values.

    together: all rows are in one piece.
    """
    tokens = _tokens(config, latent) * rows if together else _tokens_together(config, latent, rows)
    flowing = precision.activations.itemsize
    # the hidden layer before and after its activation; when quantised, also an intermediate and the bytes
    hidden = (2 if precision.quantize_activations is None else 3.25) * tokens * config.ffn_dim * flowing
    widened = tokens * config.ffn_dim * flowing + widened_bytes(precision, config.dim * config.ffn_dim)
    mlp = MLP_ACTIVATIONS * tokens * config.dim * flowing + max(hidden, widened)
    attention = ATTENTION_ACTIVATIONS * tokens * config.dim * flowing
    return int(max(mlp, attention)) + _beside_blocks(config, latent, rows, text_tokens, flowing, flowing)


def native_denoise_bytes(
    config: WanConfig, latent: tuple[int, int, int], rows: int, text_tokens: int, operand: int = FP32
) -> tuple[int, int]:
    """The same for the native CPU kernels: (all, and of that the leased buffers and the scratch, which steps keep).

    operand: bytes of a number that attention multiplies.
    """
    tokens, together = _tokens(config, latent), _tokens_together(config, latent, rows)
    wide = NATIVE_BLOCK_ACTIVATIONS * config.dim + max(3 * config.dim, config.ffn_dim)
    buffers = (wide * FP32 + NATIVE_BLOCK_OPERANDS * config.dim * operand) * together
    scratch = native_scratch_bytes(config, tokens, operand)
    beside = _beside_blocks(config, latent, rows, text_tokens, FP32, operand)
    return buffers + scratch + beside, buffers + scratch


def native_scratch_bytes(config: WanConfig, tokens: int, operand: int = FP32) -> int:
    """The scratch of a product, and the keys and values of one head, packed as they are multiplied."""
    packed = 2 * NATIVE_ROWS * (max(config.dim, config.ffn_dim) + NATIVE_COLUMNS) * FP32
    return packed + 2 * tokens * config.attention_head_dim * operand


def _beside_blocks(
    config: WanConfig, latent: tuple[int, int, int], rows: int, text_tokens: int, flowing: int, operand: int
) -> int:
    """Keys, of `operand` bytes each, and values of the prompt, and what a scheduler holds."""
    context = config.num_layers * rows * text_tokens * config.dim * (flowing + operand)
    return context + LATENT_TENSORS * rows * config.latent_channels * math.prod(latent) * FP32


def _tokens(config: WanConfig, latent: tuple[int, int, int]) -> int:
    return math.prod(n // p for n, p in zip(latent, config.patch_size, strict=True))


def _tokens_together(config: WanConfig, latent: tuple[int, int, int], rows: int) -> int:
    """Tokens of the rows that share a forward."""
    tokens = _tokens(config, latent)
    return tokens * min(rows, max(1, MAX_TOKENS_PER_FORWARD // tokens))


def text_bytes(config: UMT5Config, precision: Precision, prompts: int, tokens: int) -> int:
    """One forward of the text encoder: a block's activations, its position bias and scores."""
    inner = config.num_heads * config.d_kv
    activations = prompts * tokens * (4 * config.d_model + 5 * inner + 3 * config.d_ff) * FP32
    bias = 3 * config.num_heads * tokens**2 * FP32
    largest = config.d_model * max(2 * config.d_ff, 3 * inner)
    # while the last matrix is packed, its parts, their concatenation and the result are there at once
    return activations + bias + max(widened_bytes(precision, largest), 2 * largest * FP32)


def widened_bytes(precision: Precision, elements: int) -> int:
    """A matrix in the dtype of its product, where it is stored in fewer bits; from 8 bits there is an intermediate."""
    if precision.weights.itemsize >= precision.activations.itemsize:
        return 0
    return (2 if precision.weights.itemsize == 1 else 1) * elements * FP32


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
    frames, scale, past, largest, waiting, kept = together, 1, 0.0, 0.0, 0.0, 0.0
    for i, stage in enumerate(specs):
        if i == UpStageSpec.late(specs):
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
