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
from kinema.families.geometry import LatentSize
from kinema.families.wan.config import WanConfig
from kinema.families.wan.flops import stage_flops
from kinema.families.wan.vae import memory as vae_memory
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.ops import Plan
from kinema.ops.common import Precision
from kinema.request.generation import GenerationRequest

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
    prompts = request.prompts * (1 + request.guided)
    # a TI2V model encodes the image alone, an I2V model a whole clip that begins with it
    only_first = request.image is not None and transformer.in_channels == transformer.latent_channels
    encoded = 1 if only_first else num_frames
    held = vae_memory.work(vae, request, latent, encoded, native=native, streamed=streamed)
    if request.prompt is not None and text is not None:
        held["text"] = Work(text_bytes(text, precision, prompts, tokens))
    if plan.backend("linear") == "cpu":
        operand = (plan.attention_dtype or precision.activations).itemsize
        denoise = Work(*native_denoise_bytes(transformer, latent, rows, tokens, operand))
    else:
        # one captured forward has all rows, of both guidance halves, whatever their number
        denoise = Work(denoise_bytes(transformer, precision, latent, rows, tokens, together=graphs))
    held["denoise"] = replace(denoise, tokens=rows * _tokens(transformer, latent))
    counts = {"samples": request.samples, "rows": rows, "prompts": prompts, "text_tokens": tokens}
    flops = stage_flops(transformer, vae, text, latent, **counts, encoded=(encoded, height, width))
    return {stage: replace(held[stage], flops=count) for stage, count in flops.items() if stage in held}


def _text_tokens(request: GenerationRequest) -> int:
    """The most tokens that the transformer can read: a tokenizer makes at most one per character, and a few more."""
    given = [int(e.shape[1]) for e in (request.prompt_embeds, request.negative_prompt_embeds) if e is not None]
    texts = [request.prompt or "", request.negative_prompt or ""]
    longest = max(len(text) for texts_ in texts for text in ([texts_] if isinstance(texts_, str) else texts_))
    return max([*given, min(longest + 9, request.max_sequence_length or longest + 9)])


def denoise_bytes(
    config: WanConfig, precision: Precision, latent: LatentSize, rows: int, text_tokens: int, *, together: bool = False
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
    config: WanConfig, latent: LatentSize, rows: int, text_tokens: int, operand: int = FP32
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
    config: WanConfig, latent: LatentSize, rows: int, text_tokens: int, flowing: int, operand: int
) -> int:
    """Keys, of `operand` bytes each, and values of the prompt, and what a scheduler holds."""
    context = config.num_layers * rows * text_tokens * config.dim * (flowing + operand)
    return context + LATENT_TENSORS * rows * config.latent_channels * math.prod(latent) * FP32


def _tokens(config: WanConfig, latent: LatentSize) -> int:
    return math.prod(n // p for n, p in zip(latent, config.patch_size, strict=True))


def _tokens_together(config: WanConfig, latent: LatentSize, rows: int) -> int:
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
