"""Wan's transformer in plain PyTorch, as one would write it for torch.compile: the baseline for kinema's kernels.

The same weights, precision and result as kinema's, for text to video. Matrices and activations are of one dtype; norms'
statistics, modulation and time in fp32, as the published model keeps them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kinema.checkpoints.weights import Weights
from kinema.families.layers import sinusoid
from kinema.families.wan.config import WanConfig
from kinema.families.wan.transformer import wan_rope
from kinema.ops.common import Rope

Tensors = dict[str, torch.Tensor]
Block = Callable[[torch.Tensor, torch.Tensor, Rope, torch.Tensor, Tensors, int, float], torch.Tensor]


class WanTwin:
    """compiled: makes the block, which all layers share, faster."""

    def __init__(
        self,
        config: WanConfig,
        weights: Weights,
        dtype: torch.dtype,
        compiled: Callable[[Block], Block] = lambda block: block,
    ) -> None:
        self.config, self.dtype = config, dtype
        self._block = compiled(block)
        self._layers = [_layer(weights.sub(f"blocks.{i}"), config, dtype) for i in range(config.num_layers)]
        embed = weights.sub("condition_embedder")
        self._time = [_linear(embed, name, torch.float32) for name in ("time_embedder.linear_1",
                      "time_embedder.linear_2", "time_proj")]  # fmt: skip
        self._text = [_linear(embed, name, dtype) for name in ("text_embedder.linear_1", "text_embedder.linear_2")]
        self._patch = _linear(weights, "patch_embedding", dtype)
        self._out = _linear(weights, "proj_out", dtype)
        self._table = weights["scale_shift_table"].float()

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """latents: [B, C, T, H, W]; timestep: [B]; text: [B, L, text_dim], all of it real → [B, C, T, H, W] in fp32."""
        config = self.config
        size = [n // p for n, p in zip(latents.shape[2:], config.patch_size, strict=True)]
        rope = wan_rope((size[0], size[1], size[2]), config.attention_head_dim, latents.device)
        first, second, project = self._time
        time = F.linear(F.silu(F.linear(sinusoid(timestep, config.freq_dim), *first)), *second)
        modulation = F.linear(F.silu(time), *project).view(len(time), 6, -1)
        words = F.linear(F.gelu(F.linear(text.to(self.dtype), *self._text[0]), approximate="tanh"), *self._text[1])
        x = F.conv3d(latents.to(self.dtype), *self._patch, stride=config.patch_size).flatten(2).transpose(1, 2)
        for layer in self._layers:
            x = self._block(x, modulation, rope, words, layer, config.num_attention_heads, config.eps)
        shift, scale = (time.unsqueeze(1) + self._table).unbind(1)
        patches = F.linear(_modulated(x, scale, shift, config.eps), *self._out)
        x = patches.reshape(len(x), *size, *config.patch_size, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(len(x), -1, *latents.shape[2:]).float()


def block(
    x: torch.Tensor, modulation: torch.Tensor, rope: Rope, text: torch.Tensor, w: Tensors, heads: int, eps: float
) -> torch.Tensor:
    """x: [B, S, C]; modulation: [B, 6, C] fp32; text: [B, L, C] → [B, S, C]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + w["table"]).unbind(1)
    q, k, v = F.linear(_modulated(x, scale1, shift1, eps), w["qkv.weight"], w["qkv.bias"]).chunk(3, dim=-1)
    q, k = (
        _rotated(_heads(_rms(part, w[name], eps), heads), rope) for part, name in ((q, "norm_q"), (k, "norm_k"))
    )  # fmt: skip
    h = F.linear(_attended(q, k, _heads(v, heads)), w["out.weight"], w["out.bias"])
    x = (x.float() + h.float() * gate1.unsqueeze(1)).to(x.dtype)
    h = x
    if "norm2.weight" in w:
        h = F.layer_norm(x.float(), x.shape[-1:], w["norm2.weight"], w["norm2.bias"], eps).to(x.dtype)
    q = _rms(F.linear(h, w["cross_q.weight"], w["cross_q.bias"]), w["cross_norm_q"], eps)
    k, v = F.linear(text, w["cross_kv.weight"], w["cross_kv.bias"]).chunk(2, dim=-1)
    k = _rms(k, w["cross_norm_k"], eps)
    h = _attended(_heads(q, heads), _heads(k, heads), _heads(v, heads))
    x = x + F.linear(h, w["cross_out.weight"], w["cross_out.bias"])
    h = F.gelu(F.linear(_modulated(x, scale2, shift2, eps), w["up.weight"], w["up.bias"]), approximate="tanh")
    h = F.linear(h, w["down.weight"], w["down.bias"])
    return (x.float() + h.float() * gate2.unsqueeze(1)).to(x.dtype)


def _modulated(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)).to(x.dtype)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    a, b = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((a * rope.cos - b * rope.sin, a * rope.sin + b * rope.cos), dim=-1).flatten(-2).to(x.dtype)


def _attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _linear(weights: Weights, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return weights[f"{name}.weight"].to(dtype), weights[f"{name}.bias"].to(dtype)


def _layer(weights: Weights, config: WanConfig, dtype: torch.dtype) -> Tensors:
    """A block's tensors by the names that `block` uses."""
    fused = {
        "qkv": [f"attn1.to_{part}" for part in "qkv"],
        "out": ["attn1.to_out.0"],
        "cross_q": ["attn2.to_q"],
        "cross_kv": ["attn2.to_k", "attn2.to_v"],
        "cross_out": ["attn2.to_out.0"],
        "up": ["ffn.net.0.proj"],
        "down": ["ffn.net.2"],
    }
    layer = {
        f"{name}.{kind}": torch.cat([weights[f"{part}.{kind}"] for part in parts]).to(dtype)
        for name, parts in fused.items()
        for kind in ("weight", "bias")
    }
    norms = {"norm_q": "attn1.norm_q", "norm_k": "attn1.norm_k"}
    norms |= {"cross_norm_q": "attn2.norm_q", "cross_norm_k": "attn2.norm_k"}
    layer |= {name: weights[f"{norm}.weight"].float() for name, norm in norms.items()}
    if config.cross_attn_norm:
        layer |= {f"norm2.{kind}": weights[f"norm2.{kind}"].float() for kind in ("weight", "bias")}
    return {**layer, "table": weights["scale_shift_table"].float()}
