"""The CLIP vision transformer: an image encoder (ViT-H/14).

Radford et al. 2021, arXiv 2103.00020; Dosovitskiy et al. 2021, arXiv 2010.11929.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from kinema.checkpoints.weights import Stored, Tensors, Weights
from kinema.encoders.transformers_config import HOUSEKEEPING_KEYS
from kinema.errors import CheckpointError, RequestError, shown
from kinema.families.layers import Mlp, pack_linear
from kinema.fields.config import Epsilon, Layers, Range, Size, from_config, origin
from kinema.ops import Ops
from kinema.ops.attention import KV
from kinema.ops.linear import Activation

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu"}

# Of the projection head or of training: no influence on the hidden states.
IGNORED_KEYS = HOUSEKEEPING_KEYS | {"attention_dropout", "dropout", "projection_dim"}

# Folders written as CLIPVisionModelWithProjection, or by old versions of transformers, hold these too.
IGNORED_TENSORS = (r"^visual_projection\.", r"position_ids$")

# until version 5, transformers put this before every name
PREFIX = "vision_model"


@dataclass(frozen=True)
class CLIPVisionConfig:
    """CLIPVisionModel's config.json. CheckpointError where its numbers do not fit each other."""

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Annotated[int, Range(1, 1000)] = 12
    num_channels: Literal[3] = 3
    image_size: Annotated[int, Range(1, 4096)] = 224
    patch_size: Annotated[int, Range(1, 4096)] = 32
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> CLIPVisionConfig:
        """Read a transformers config; CheckpointError for what this encoder would compute differently."""
        kind = config.get("model_type", "clip_vision_model")
        if kind != "clip_vision_model":
            raise CheckpointError(
                f"{origin(config, 'CLIPVisionConfig')}: an image encoder with model_type={shown(kind)} is not known: "
                "wanted 'clip_vision_model'"
            )
        return from_config(CLIPVisionConfig, config, ignore=IGNORED_KEYS | {"model_type"})

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} attention heads"
            )
        if self.patch_size > self.image_size:
            raise CheckpointError(f"patch_size {self.patch_size} is more than image_size {self.image_size}")

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def tensor_shapes(config: CLIPVisionConfig, found: Container[str] = ()) -> Tensors:
    """Every tensor of a CLIPVisionModel checkpoint.

    found: names that a folder holds; they decide whether `PREFIX` is expected before every name.
    """
    width, ffn = config.hidden_size, config.intermediate_size
    shapes: Tensors = {
        "embeddings.class_embedding": Stored((width,)),
        "embeddings.patch_embedding.weight": Stored((width, config.num_channels, config.patch_size, config.patch_size)),
        "embeddings.position_embedding.weight": Stored((1 + config.patches, width)),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"] = Stored((out, into), "planned")
        shapes[f"{name}.bias"] = Stored((out,))

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = Stored((width,))
        shapes[f"{name}.bias"] = Stored((width,))

    norm("pre_layrnorm")
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layers.{i}"
        norm(f"{layer}.layer_norm1")
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{proj}", width, width)
        norm(f"{layer}.layer_norm2")
        linear(f"{layer}.mlp.fc1", ffn, width)
        linear(f"{layer}.mlp.fc2", width, ffn)
    norm("post_layernorm")  # only the pooled output, which no pipeline asks for, goes through it
    if f"{PREFIX}.embeddings.class_embedding" in found:
        return {f"{PREFIX}.{name}": shape for name, shape in shapes.items()}
    return shapes


class LayerNorm:
    """Weight and bias of a LayerNorm, fp32, and its epsilon."""

    def __init__(self, weights: Weights, name: str, eps: float, ops: Ops) -> None:
        self.ops = ops
        self.eps = eps
        self.weight = weights[f"{name}.weight"].to(ops.device).float()
        self.bias = weights[f"{name}.bias"].to(ops.device).float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, S, C] → the same."""
        return self.ops.norm_modulate(x, eps=self.eps, weight=self.weight, bias=self.bias)


class CLIPLayer:
    def __init__(self, config: CLIPVisionConfig, weights: Weights, ops: Ops) -> None:
        self.ops = ops
        self.heads = config.num_attention_heads
        self.norm1 = LayerNorm(weights, "layer_norm1", config.layer_norm_eps, ops)
        attn = weights.sub("self_attn")
        projections = ("q_proj", "k_proj", "v_proj")
        self.qkv = ops.pack_linear([attn[f"{p}.weight"] for p in projections], [attn[f"{p}.bias"] for p in projections])
        self.out = pack_linear(attn, "out_proj", ops)
        self.norm2 = LayerNorm(weights, "layer_norm2", config.layer_norm_eps, ops)
        self.mlp = Mlp(weights.sub("mlp"), ("fc1", "fc2"), ACTIVATIONS[config.hidden_act], ops)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, S, C] → the same."""
        ops = self.ops
        q, k, v = ops.linear(self.norm1(x), self.qkv).chunk(3, dim=-1)
        q = ops.qk_norm_rope(q, self.heads)
        k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (k, v))
        (h,) = ops.attention(q, KV(k, v))
        x = ops.linear(h, self.out, residual=x)
        return self.mlp(self.norm2(x), residual=x)


class CLIPVisionEncoder:
    """An image as 1 + n tokens: the class token and one per patch."""

    def __init__(self, config: CLIPVisionConfig, weights: Weights, ops: Ops) -> None:
        if f"{PREFIX}.embeddings.class_embedding" in weights:
            weights = weights.sub(PREFIX)
        self.config = config
        self.ops = ops
        embeddings = weights.sub("embeddings")
        position = embeddings["position_embedding.weight"].to(ops.device).float()
        self.class_token = embeddings["class_embedding"].to(ops.device).float() + position[0]
        self.position = position[1:]
        # an image is a video of one frame
        self.patch = ops.pack_patch_embed(embeddings["patch_embedding.weight"].unsqueeze(2))
        self.pre_norm = LayerNorm(weights, "pre_layrnorm", config.layer_norm_eps, ops)
        self.layers = [
            CLIPLayer(config, weights.sub(f"encoder.layers.{i}"), ops) for i in range(config.num_hidden_layers)
        ]

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last hidden state. pixel_values: [B, 3, H, W], normalised → [B, 1+n, C]."""
        return self._hidden(pixel_values, self.layers)

    def penultimate(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The hidden state before the last layer, which video models condition on. [B, 3, H, W] → [B, 1+n, C]."""
        return self._hidden(pixel_values, self.layers[:-1])

    def _hidden(self, pixel_values: torch.Tensor, layers: list[CLIPLayer]) -> torch.Tensor:
        config, ops = self.config, self.ops
        wanted = (config.num_channels, config.image_size, config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != wanted:
            raise RequestError(
                f"pixel_values have shape {tuple(pixel_values.shape)}: wanted [B, {', '.join(map(str, wanted))}]; "
                "the image processor resizes and crops to it"
            )
        # a patch size that does not divide leaves a margin at the right and the bottom, as a convolution does
        side = config.image_size // config.patch_size * config.patch_size
        video = pixel_values[:, :, None, :side, :side].to(ops.device, ops.dtype)
        patches = ops.patch_embed(video, self.patch, position=self.position)
        class_token = self.class_token.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = self.pre_norm(torch.cat((class_token, patches), dim=1))
        for layer in layers:
            x = layer(x)
        return x
