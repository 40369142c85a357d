"""The UMT5 text encoder.

A T5 encoder (RMS norms, gated MLP, no biases, unscaled attention) in which every layer has its own table of
relative position biases. Chung et al. 2023, arXiv 2304.09151; Raffel et al. 2020, arXiv 1910.10683.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch

from kinema.checkpoints.weights import Stored, Tensors, Weights
from kinema.encoders.transformers_config import HOUSEKEEPING_KEYS
from kinema.errors import CheckpointError, RequestError, shown
from kinema.fields.config import Epsilon, Layers, Range, Size, from_config, origin
from kinema.fields.diffusers_names import DiffusersNames
from kinema.fields.values import dense
from kinema.ops import Ops
from kinema.ops.attention import KV
from kinema.ops.linear import Activation


@dataclass(frozen=True)
class FeedForward:
    """What a `feed_forward_proj` means; dense_act_fn is transformers' name of the activation."""

    activation: Activation
    dense_act_fn: str
    gated: bool
    relu: bool = False


FEED_FORWARD = {
    "gated-gelu": FeedForward("gelu_tanh", "gelu_new", gated=True),  # "gelu" alone would be the erf form
    "gated-silu": FeedForward("silu", "silu", gated=True),
    "relu": FeedForward("none", "relu", gated=False, relu=True),
}

# For the decoder or training, or historical: no influence on the encoder.
IGNORED_KEYS = HOUSEKEEPING_KEYS | {
    "classifier_dropout",
    "decoder_start_token_id",
    "dropout_rate",
    "num_decoder_layers",
    "output_past",
    "scalable_attention",
}

# A folder of the whole sequence-to-sequence model holds these too.
IGNORED_TENSORS = (r"^decoder\.", r"^lm_head\.")

# The token embedding under the two names that it has; folders hold one or both.
SHARED_EMBEDDING = "shared.weight"
OWN_EMBEDDING = "encoder.embed_tokens.weight"


@dataclass(frozen=True)
class UMT5Config:
    """UMT5EncoderModel's config.json. CheckpointError where its numbers do not fit each other."""

    vocab_size: Size = 250112
    d_model: Size = 512
    d_kv: Annotated[int, Range(1, 1024)] = 64
    d_ff: Size = 1024
    num_layers: Layers = 8
    num_heads: Annotated[int, Range(1, 1000)] = 6
    relative_attention_num_buckets: Annotated[int, Range(4, 10_000)] = 32
    relative_attention_max_distance: Annotated[int, Range(2, 10**6)] = 128
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: Literal["gated-gelu", "gated-silu", "relu"] = "gated-gelu"

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> UMT5Config:
        """Read a transformers config; CheckpointError for what this encoder would compute differently."""
        where = origin(config, "UMT5Config")
        fixed = {"model_type": "umt5", "is_decoder": False}
        for key, wanted in fixed.items():
            if config.get(key, wanted) != wanted:
                raise CheckpointError(
                    f"{where}: a text encoder with {key}={shown(config[key])} is not known: wanted {wanted!r}"
                )
        derived = {"dense_act_fn", "is_gated_act"}
        umt5 = from_config(UMT5Config, config, ignore=IGNORED_KEYS | derived | fixed.keys())
        implied = {"dense_act_fn": umt5.feed_forward.dense_act_fn, "is_gated_act": umt5.feed_forward.gated}
        for key, wanted in implied.items():
            if config.get(key, wanted) != wanted:
                raise CheckpointError(
                    f"{where}: {key}={shown(config[key])} contradicts feed_forward_proj={umt5.feed_forward_proj!r}"
                )
        return umt5

    def __post_init__(self) -> None:
        exact = self.relative_attention_num_buckets // 4
        if exact < 1 or self.relative_attention_max_distance <= exact:
            raise CheckpointError(
                f"{self.relative_attention_num_buckets} position buckets up to distance "
                f"{self.relative_attention_max_distance}: wanted at least 4 buckets, a distance above a quarter of them"
            )

    @property
    def feed_forward(self) -> FeedForward:
        return FEED_FORWARD[self.feed_forward_proj]


def tensor_shapes(config: UMT5Config, found: Container[str] = ()) -> Tensors:
    """Every tensor of a UMT5EncoderModel checkpoint.

    found: names that a folder holds; they decide under which name, or both, the token embedding is expected.
    """
    width, inner = config.d_model, config.num_heads * config.d_kv
    embeddings = [name for name in (SHARED_EMBEDDING, OWN_EMBEDDING) if name in found] or [SHARED_EMBEDDING]
    shapes: Tensors = dict.fromkeys(embeddings, Stored((config.vocab_size, width), "table"))
    for i in range(config.num_layers):
        attn, ffn = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for proj in ("q", "k", "v"):
            shapes[f"{attn}.SelfAttention.{proj}.weight"] = Stored((inner, width), "planned")
        shapes[f"{attn}.SelfAttention.o.weight"] = Stored((width, inner), "planned")
        shapes[f"{attn}.SelfAttention.relative_attention_bias.weight"] = Stored(
            (config.relative_attention_num_buckets, config.num_heads)
        )
        shapes[f"{attn}.layer_norm.weight"] = Stored((width,))
        for proj in ("wi_0", "wi_1") if config.feed_forward.gated else ("wi",):
            shapes[f"{ffn}.DenseReluDense.{proj}.weight"] = Stored((config.d_ff, width), "planned")
        shapes[f"{ffn}.DenseReluDense.wo.weight"] = Stored((width, config.d_ff), "planned")
        shapes[f"{ffn}.layer_norm.weight"] = Stored((width,))
    shapes["encoder.final_layer_norm.weight"] = Stored((width,))
    return shapes


@lru_cache(maxsize=64)
def offset_buckets(length: int, buckets: int, max_distance: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The bucket of every offset (key − query) from −(length − 1) to length − 1, [2·length − 1] int64.

    Half of the buckets are for keys to the right. Of each half, the first half holds one offset each, the
    rest grow geometrically up to `max_distance`. In fp32, step by step as transformers does it: the rounding
    decides where a bucket ends.
    """
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        offset = torch.arange(1 - length, length, dtype=torch.int64, device="cpu")
        half = buckets // 2
        exact = half // 2
        distance = offset.abs()
        ratio = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact)
        far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        return (torch.where(distance < exact, distance, far) + half * (offset > 0)).to(device)


@dataclass(frozen=True)
class AttentionInputs:
    """What the layers of one forward share: the bucket of each pair of tokens, and which keys are real.

    buckets: [S, S] int64. lengths: [B] leading real keys. mask: [B, 1, 1, S], −inf where a key is padding.
    """

    buckets: torch.Tensor
    lengths: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class UMT5Block:
    def __init__(self, config: UMT5Config, weights: Weights, ops: Ops) -> None:
        self.ops = ops
        self.heads = config.num_heads
        self.eps = config.layer_norm_epsilon

        attn = weights.sub("layer.0.SelfAttention")
        self.attn_norm = weights["layer.0.layer_norm.weight"].to(ops.device).float()
        self.qkv = ops.pack_linear([attn[f"{p}.weight"] for p in ("q", "k", "v")])
        self.out = ops.pack_linear(attn["o.weight"])
        self.position = attn["relative_attention_bias.weight"].to(ops.device).float()  # [buckets, N]

        ffn = weights.sub("layer.1.DenseReluDense")
        self.ffn_norm = weights["layer.1.layer_norm.weight"].to(ops.device).float()
        self.feed_forward = config.feed_forward
        if self.feed_forward.gated:
            self.up = ops.pack_linear(ffn["wi_1.weight"], gate_weight=ffn["wi_0.weight"])
        else:
            self.up = ops.pack_linear(ffn["wi.weight"])
        # its output outgrows fp16; bf16 has the range (transformers makes the same distinction)
        self.down = ops.pack_linear(ffn["wo.weight"], storage="exact" if ops.dtype == torch.float16 else "planned")

    def __call__(self, x: torch.Tensor, attention: AttentionInputs) -> torch.Tensor:
        """x: [B, S, C] → the same. x may be fp32 where ops pass on fp16."""
        ops = self.ops

        h = ops.norm_modulate(x, norm="rms", eps=self.eps, weight=self.attn_norm).to(ops.dtype)
        q, k, v = ops.linear(h, self.qkv).chunk(3, dim=-1)
        q = ops.qk_norm_rope(q, self.heads)
        k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (k, v))
        bias = self.position.T[:, attention.buckets].unsqueeze(0)  # [1, N, S, S]
        if attention.mask is not None:
            bias = bias + attention.mask
        (h,) = ops.attention(q, KV(k, v, attention.lengths), scale=1.0, bias=bias)
        x = ops.linear(h.to(x.dtype), self.out, residual=x)

        h = ops.norm_modulate(x, norm="rms", eps=self.eps, weight=self.ffn_norm).to(ops.dtype)
        h = ops.linear(h, self.up, activation=self.feed_forward.activation)
        h = h.relu() if self.feed_forward.relu else h
        return ops.linear(h.to(x.dtype), self.down, residual=x)


class UMT5Encoder(DiffusersNames):
    """Tokens to the hidden states that condition the diffusion transformer."""

    def __init__(self, config: UMT5Config, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.ops = ops
        # where both are present, the encoder reads its own (transformers does not tie them if they differ)
        self.embedding = weights.table(OWN_EMBEDDING if OWN_EMBEDDING in weights else SHARED_EMBEDDING)
        self.blocks = [UMT5Block(config, weights.sub(f"encoder.block.{i}"), ops) for i in range(config.num_layers)]
        self.final_norm = weights["encoder.final_layer_norm.weight"].to(ops.device).float()

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The last hidden state.

        input_ids: [B, S] int. attention_mask: [B, S], nonzero for real tokens (None: all are), padded on
        either side. Padding attends to the real tokens but is seen by none. Returns [B, S, C].
        """
        attention = self._attention_inputs(input_ids, attention_mask)
        self._check(input_ids)
        return self._run(input_ids, attention)

    def right_padded(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The same for tokens [B, S] of which the first lengths [B] are real, all within the vocabulary.

        No value is inspected, so that a CUDA graph can record it.
        """
        return self._run(input_ids, AttentionInputs(self._pairs(input_ids.shape[1]), lengths=lengths))

    def _run(self, input_ids: torch.Tensor, attention: AttentionInputs) -> torch.Tensor:
        ops = self.ops
        rows = self.embedding.rows(input_ids)
        # sums of many layers outgrow fp16, so the residual stream is fp32 there, as in transformers
        x = rows.to(ops.device, torch.float32 if ops.dtype == torch.float16 else ops.dtype)
        for block in self.blocks:
            x = block(x, attention)
        x = ops.norm_modulate(x, norm="rms", eps=self.config.layer_norm_epsilon, weight=self.final_norm)
        return x.to(ops.dtype)

    def _check(self, input_ids: torch.Tensor) -> None:
        vocabulary = self.embedding.shape[0]
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocabulary:
            raise RequestError(
                f"token ids run from {low} to {high}, this text encoder knows 0 to {vocabulary - 1}: "
                "the tokenizer belongs to another model"
            )

    def _pairs(self, tokens: int) -> torch.Tensor:
        config, device = self.config, self.ops.device
        buckets = offset_buckets(
            tokens, config.relative_attention_num_buckets, config.relative_attention_max_distance, device
        )
        place = torch.arange(tokens, dtype=torch.int64, device=device)
        return buckets[place[None, :] - place[:, None] + tokens - 1]

    def _attention_inputs(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> AttentionInputs:
        device = self.ops.device
        if dense("input_ids", input_ids, floating=False).is_floating_point():
            raise RequestError(f"input_ids are a tensor of {input_ids.dtype}: wanted whole numbers")
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise RequestError(f"input_ids have shape {tuple(input_ids.shape)}: wanted [B, S]")
        pairs = self._pairs(input_ids.shape[1])
        if mask is None:
            return AttentionInputs(pairs)
        if dense("attention_mask", mask, floating=False).shape != input_ids.shape:
            raise RequestError(
                f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}: they must agree"
            )
        if bool((mask != 0).all()):
            return AttentionInputs(pairs)
        lengths = _right_padded(mask)
        if lengths is not None:
            return AttentionInputs(pairs, lengths=lengths.to(device))
        additive = torch.zeros(mask.shape, dtype=torch.float32, device=device)
        additive = additive.masked_fill((mask == 0).to(device), float("-inf"))
        return AttentionInputs(pairs, mask=additive[:, None, None, :])


def _right_padded(mask: torch.Tensor) -> torch.Tensor | None:
    """[B, S] → the number of real tokens [B] if they all come first, else None."""
    real = mask != 0
    lengths = real.sum(dim=1)
    slots = torch.arange(mask.shape[1], dtype=torch.int64, device=mask.device)
    return lengths if torch.equal(real, slots < lengths[:, None]) else None
