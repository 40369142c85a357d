"""WanTransformer3DModel's config.json, and the tensors that it calls for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from kinema.checkpoints.weights import Stored, Tensors
from kinema.errors import CheckpointError
from kinema.fields.config import Epsilon, Layers, Range, Size, from_config
from kinema.ops.common import Storage


@dataclass(frozen=True)
class WanConfig:
    """WanTransformer3DModel's config.json. CheckpointError where the layers would not fit together."""

    patch_size: Annotated[tuple[int, int, int], Range(1, 64)] = (1, 2, 2)
    num_attention_heads: Annotated[int, Range(1, 1000)] = 40
    attention_head_dim: Annotated[int, Range(2, 1024)] = 128
    in_channels: Size = 16
    out_channels: Size | None = 16
    text_dim: Size = 4096
    freq_dim: Size = 256
    ffn_dim: Size = 13824
    num_layers: Layers = 40
    cross_attn_norm: bool = True
    qk_norm: Literal["rms_norm_across_heads"] = "rms_norm_across_heads"
    eps: Epsilon = 1e-6
    image_dim: Size | None = None
    added_kv_proj_dim: Size | None = None
    rope_max_seq_len: Size = 1024
    pos_embed_seq_len: Size | None = None

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> WanConfig:
        return from_config(WanConfig, config)

    def __post_init__(self) -> None:
        if self.attention_head_dim % 2 or self.freq_dim % 2:
            raise CheckpointError(
                f"attention_head_dim is {self.attention_head_dim}, freq_dim {self.freq_dim}: wanted even numbers, "
                "since channels are rotated in pairs"
            )
        if self.in_channels < self.latent_channels:
            raise CheckpointError(
                f"in_channels is {self.in_channels}, out_channels {self.out_channels}: wanted at least as many, the "
                "latents and what conditions them"
            )
        if (self.image_dim is None) != (self.added_kv_proj_dim is None):
            raise CheckpointError("image_dim and added_kv_proj_dim come together: one of them is null")
        if self.added_kv_proj_dim not in (None, self.dim):
            raise CheckpointError(
                f"added_kv_proj_dim is {self.added_kv_proj_dim}: wanted {self.dim}, the width of the embedded image"
            )

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def latent_channels(self) -> int:
        """Channels of the model's output; inputs may add conditioning channels."""
        return self.out_channels or self.in_channels


def tensor_shapes(config: WanConfig) -> Tensors:
    """Every tensor of a WanTransformer3DModel checkpoint."""
    dim, ffn = config.dim, config.ffn_dim
    shapes: Tensors = {}

    def linear(name: str, out: int, into: int, storage: Storage = "planned") -> None:
        shapes[f"{name}.weight"] = Stored((out, into), storage)
        shapes[f"{name}.bias"] = Stored((out,))

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = Stored((channels,))
        shapes[f"{name}.bias"] = Stored((channels,))

    shapes["patch_embedding.weight"] = Stored((dim, config.in_channels, *config.patch_size))
    shapes["patch_embedding.bias"] = Stored((dim,))
    linear("condition_embedder.time_embedder.linear_1", dim, config.freq_dim, "exact")
    linear("condition_embedder.time_embedder.linear_2", dim, dim, "exact")
    linear("condition_embedder.time_proj", 6 * dim, dim, "exact")
    # the products before and after the blocks are small, and no block makes up for their errors
    linear("condition_embedder.text_embedder.linear_1", dim, config.text_dim, "wide")
    linear("condition_embedder.text_embedder.linear_2", dim, dim, "wide")
    if config.image_dim is not None:
        image = "condition_embedder.image_embedder"
        norm(f"{image}.norm1", config.image_dim)
        linear(f"{image}.ff.net.0.proj", config.image_dim, config.image_dim, "wide")
        linear(f"{image}.ff.net.2", dim, config.image_dim, "wide")
        norm(f"{image}.norm2", dim)
        if config.pos_embed_seq_len is not None:
            shapes[f"{image}.pos_embed"] = Stored((1, config.pos_embed_seq_len, config.image_dim))
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        for attn in ("attn1", "attn2"):
            for proj in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{block}.{attn}.{proj}", dim, dim)
            shapes[f"{block}.{attn}.norm_q.weight"] = Stored((dim,))
            shapes[f"{block}.{attn}.norm_k.weight"] = Stored((dim,))
        if config.added_kv_proj_dim is not None:
            linear(f"{block}.attn2.add_k_proj", dim, config.added_kv_proj_dim)
            linear(f"{block}.attn2.add_v_proj", dim, config.added_kv_proj_dim)
            shapes[f"{block}.attn2.norm_added_k.weight"] = Stored((dim,))
        if config.cross_attn_norm:
            norm(f"{block}.norm2", dim)
        linear(f"{block}.ffn.net.0.proj", ffn, dim)
        linear(f"{block}.ffn.net.2", dim, ffn)
        shapes[f"{block}.scale_shift_table"] = Stored((1, 6, dim))
    linear("proj_out", config.latent_channels * math.prod(config.patch_size), dim, "wide")
    shapes["scale_shift_table"] = Stored((1, 2, dim))
    return shapes


# In the published checkpoints, unused by the model.
IGNORED_TENSORS = ("norm_added_q",)
