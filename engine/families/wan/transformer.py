"""The Wan diffusion transformer: 2.1 T2V and I2V, 2.2 A14B experts, 2.2 TI2V-5B.

Each block is self-attention over all space-time patches, cross-attention to the prompt (and image), and an
MLP; the timestep scales, shifts and gates the first and last. Wan Team 2025, arXiv 2503.20314.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import torch

from kinema.buffers.activations import ActivationBuffers, BufferPool
from kinema.checkpoints.weights import Weights
from kinema.families.layers import Mlp, pack_linear, sinusoid
from kinema.families.wan.config import WanConfig, tensor_shapes
from kinema.families.wan.context import Context, fold_padding
from kinema.ops import Ops
from kinema.ops.attention import KV, BlockCausal
from kinema.ops.common import Rope
from kinema.ops.norm_modulate import Norm
from kinema.ops.qk_norm_rope import HeadNorm


@lru_cache(maxsize=8)
def wan_rope(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Rope:
    """The rotation of a (T', H', W') grid of tokens: a third of the head for H and W each, the rest for T."""
    spatial = 2 * (head_dim // 6)
    with torch.inference_mode(False):  # the table outlives this call, and a training run may read it next
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.int64, device="cpu") for n in grid), indexing="ij")
        positions = torch.stack([axis.flatten() for axis in axes], dim=-1)
        return Rope.from_positions(positions, (head_dim - 2 * spatial, spatial, spatial)).to(device)


class WanBlock:
    def __init__(self, config: WanConfig, weights: Weights, ops: Ops) -> None:
        self.ops = ops
        self.heads = config.num_attention_heads
        self.eps = config.eps
        self.table = weights["scale_shift_table"].to(ops.device).float()

        attn = weights.sub("attn1")
        projections = ("to_q", "to_k", "to_v")
        self.qkv = ops.pack_linear([attn[f"{p}.weight"] for p in projections], [attn[f"{p}.bias"] for p in projections])
        self.out = pack_linear(attn, "to_out.0", ops)
        weight = torch.cat([attn["norm_q.weight"], attn["norm_k.weight"]])
        self.norm_qk = replace(self._across_heads(weight), operands=2)

        cross = weights.sub("attn2")
        self.cross_q = pack_linear(cross, "to_q", ops)
        self.cross_kv = ops.pack_linear(
            [cross["to_k.weight"], cross["to_v.weight"]], [cross["to_k.bias"], cross["to_v.bias"]]
        )
        self.cross_out = pack_linear(cross, "to_out.0", ops)
        self.cross_norm_q = self._across_heads(cross["norm_q.weight"])
        self.cross_norm_k = self._across_heads(cross["norm_k.weight"])
        self.image_kv = None
        if config.added_kv_proj_dim is not None:
            self.image_kv = ops.pack_linear(
                [cross["add_k_proj.weight"], cross["add_v_proj.weight"]],
                [cross["add_k_proj.bias"], cross["add_v_proj.bias"]],
            )
            self.image_norm_k = self._across_heads(cross["norm_added_k.weight"])
        self.norm2 = None
        if config.cross_attn_norm:
            weight, bias = (weights[f"norm2.{name}"].to(ops.device).float() for name in ("weight", "bias"))
            self.norm2 = Norm(self.eps, weight=weight, bias=bias)
        self.ffn = Mlp(weights.sub("ffn"), ("net.0.proj", "net.2"), "gelu_tanh", ops)

    def _across_heads(self, weight: torch.Tensor) -> HeadNorm:
        return HeadNorm("rms", self.eps, weight.to(self.ops.device).float(), across_heads=True)

    def text_kv(self, text: torch.Tensor) -> KV:
        """Cross-attention keys and values of embedded text [R, L, C]."""
        return self._keys_values(self.ops.linear(text, self.cross_kv), self.cross_norm_k)

    def image_context_kv(self, image: torch.Tensor) -> KV:
        """The same for embedded image tokens [R, L, C]."""
        assert self.image_kv is not None
        return self._keys_values(self.ops.linear(image, self.image_kv), self.image_norm_k)

    def _keys_values(self, kv: torch.Tensor, norm: HeadNorm) -> KV:
        k, v = kv.chunk(2, dim=-1)
        k = self.ops.qk_norm_rope(k, self.heads, norm=norm, dtype=self.ops.plan.attention_dtype)
        return KV(k, self.ops.qk_norm_rope(v, self.heads))

    def __call__(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        rope: Rope,
        text: KV,
        text_bias: torch.Tensor | None,
        image: KV | None,
        causal: BlockCausal | None,
        buffers: ActivationBuffers,
    ) -> torch.Tensor:
        """x: [R, S, C], whose memory the result may take; modulation: [R, G, 6, C] fp32 → [R, S, C]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(2)
        h = self._self_attention(x, Norm(self.eps, scale=scale1, shift=shift1), rope, causal, buffers)
        x = self.ops.linear(h, self.out, gate=gate1, residual=x, out=buffers.in_place(x))
        h = self._cross_attention(x, text, text_bias, image, buffers)
        x = self.ops.linear(h, self.cross_out, residual=x, out=buffers.in_place(x))
        return self.ffn.onto(x, Norm(self.eps, scale=scale2, shift=shift2), gate2, buffers)

    def _self_attention(
        self, x: torch.Tensor, norm: Norm, rope: Rope, causal: BlockCausal | None, buffers: ActivationBuffers
    ) -> torch.Tensor:
        rows, tokens, channels = x.shape
        heads = (rows, 2 * self.heads, tokens, channels // self.heads)
        wide = buffers.get("wide", (rows, tokens, 3 * channels), x)
        qkv, dtype = self.ops.linear(x, self.qkv, norm=norm, out=wide), self.ops.plan.attention_dtype
        qk, v = qkv[..., : 2 * channels], qkv[..., 2 * channels :]
        into = buffers.get("qk", heads, x, dtype)
        qk = self.ops.qk_norm_rope(qk, 2 * self.heads, norm=self.norm_qk, rope=rope, dtype=dtype, out=into)
        q, k = qk.chunk(2, dim=1)
        v = v.view(*v.shape[:2], self.heads, -1).transpose(1, 2)
        quantize, out = self.ops.plan.quantize_attention, buffers.get("narrow", x.shape, x)
        return self.ops.attention(q, KV(k, v), causal=causal, quantize=quantize, out=out)[0]

    def _cross_attention(
        self, x: torch.Tensor, text: KV, text_bias: torch.Tensor | None, image: KV | None, buffers: ActivationBuffers
    ) -> torch.Tensor:
        rows, tokens, channels = x.shape
        q = self.ops.linear(x, self.cross_q, norm=self.norm2, out=buffers.get("wide", x.shape, x))
        heads = (rows, self.heads, tokens, channels // self.heads)
        dtype = self.ops.plan.attention_dtype
        into = buffers.get("qk", heads, x, dtype)
        q = self.ops.qk_norm_rope(q, self.heads, norm=self.cross_norm_q, dtype=dtype, out=into)
        h = self.ops.attention(q, text, bias=text_bias, out=buffers.get("narrow", x.shape, x))[0]
        # the image has a softmax of its own
        return h if image is None else self.ops.attention(q, image, residual=h)[0]


class WanTransformer:
    """Predicts the velocity (or whatever the scheduler's config declares) of noisy latents."""

    def __init__(self, config: WanConfig, weights: Weights, ops: Ops) -> None:
        weights = weights.kept(tensor_shapes(config))
        self.config = config
        self.ops = ops
        self.patch = ops.pack_patch_embed(weights["patch_embedding.weight"], weights["patch_embedding.bias"])
        embed = weights.sub("condition_embedder")
        self.time_embed = Mlp(embed, ("time_embedder.linear_1", "time_embedder.linear_2"), "silu", ops)
        self.time_proj = pack_linear(embed, "time_proj", ops)
        self.text_embed = Mlp(embed, ("text_embedder.linear_1", "text_embedder.linear_2"), "gelu_tanh", ops)
        self.image_embed = ImageEmbedding(embed.sub("image_embedder"), ops) if config.image_dim is not None else None
        self.blocks = [WanBlock(config, weights.sub(f"blocks.{i}"), ops) for i in range(config.num_layers)]
        self.tables = torch.cat([block.table.detach() for block in self.blocks])  # [layers, 6, C]
        for block, table in zip(self.blocks, self.tables.unsqueeze(1).unbind(), strict=True):
            if not block.table.requires_grad:  # one that is trained stays what the optimizer knows
                block.table = table
        self.ones = self.tables.new_ones(config.num_layers, 1, 2)
        self.table = weights["scale_shift_table"].to(ops.device).float()
        self.proj_out = pack_linear(weights, "proj_out", ops)
        # a GPU's allocator caches freed memory, and the reference op would allocate its result and copy it
        self.buffer_pool = BufferPool(enabled=ops.plan.backend("linear") == "cpu")

    @property
    def patch_size(self) -> tuple[int, int, int]:
        return self.config.patch_size

    def release(self) -> None:
        """Free the activation buffers; the next forward makes new ones."""
        self.buffer_pool.release()

    def encode_context(
        self, text: torch.Tensor, image: torch.Tensor | None = None, *, folded: int | None = None
    ) -> Context:
        """Cross-attention keys and values of a prompt, for every layer; they are the same at every step.

        text: [R, L, text_dim], zeros after the prompt's end. image: [R, L, image_dim] CLIP tokens (2.1 I2V).
        folded: how many zero tokens the last one of text stands for; None: `fold_padding` finds out.
        """
        if (image is None) != (self.image_embed is None):
            raise ValueError(
                "this transformer needs image embeddings" if image is None else "this transformer takes no image"
            )
        text = text.to(self.ops.device, self.ops.dtype)
        if folded is None:
            text, folded = fold_padding(text)
        embedded = self.text_embed(text)
        layers = tuple(block.text_kv(embedded) for block in self.blocks)
        if image is None or self.image_embed is None:
            return Context(layers, folded=folded)
        tokens = self.image_embed(image.to(self.ops.device, self.ops.dtype))
        return Context(layers, tuple(block.image_context_kv(tokens) for block in self.blocks), folded)

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        context: Context,
        *,
        causal: BlockCausal | None = None,
        rope: Rope | None = None,
    ) -> torch.Tensor:
        """One forward.

        latents: [R, in_channels, T, H, W]. timesteps: [R], or [R, G] by group of tokens (per frame or per
        token). causal: block-causal self-attention, in tokens. rope: the result of `rope(latents)`, if the caller
        keeps it. Returns [R, out_channels, T, H, W] in fp32.
        """
        modulation, last = self.modulations(timesteps)
        layers = (modulation + block.table for block in self.blocks)  # one at a time: G may be all tokens
        rope = self.rope(latents) if rope is None else rope
        with self.buffer_pool.lease() as buffers:
            return self._forward(latents, layers, last, context, causal, rope, buffers)

    def modulations(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """timesteps: [R] or [R, G] → the blocks' [R, G, 6, C], to which each adds its table, and the output norm's
        [R, G, 2, C], fp32."""
        time, modulation = self._embed(timesteps.to(self.ops.device))
        return modulation, time.unsqueeze(2) + self.table

    def forward(
        self,
        latents: torch.Tensor,
        modulations: tuple[torch.Tensor, ...],
        context: Context,
        *,
        rope: Rope | None,
        buffers: ActivationBuffers,
    ) -> torch.Tensor:
        """`__call__` from `modulations` on, to be recorded: on a CPU by ops alone."""
        modulation, last = modulations
        layers = self._modulated(modulation, buffers)
        rope = self.rope(latents) if rope is None else rope
        return self._forward(latents, layers, last, context, None, rope, buffers)

    def _modulated(self, modulation: torch.Tensor, buffers: ActivationBuffers) -> Iterable[torch.Tensor]:
        """[R, G, 6, C] plus each block's table, [R, G, 6, C] each."""
        sums = buffers.get("modulation", (*modulation.shape[:2], *self.tables.shape), modulation)
        if sums is None:
            return (modulation + block.table for block in self.blocks)
        for given, out in zip(modulation.flatten(0, 1), sums.flatten(0, 1), strict=True):
            # the op sums anything, and can be recorded
            self.ops.scheduler_step((given.expand_as(self.tables), self.tables), self.ones, out=(out,))
        return sums.unbind(2)

    def rope(self, latents: torch.Tensor) -> Rope:
        """The rotation of the tokens of latents [R, in_channels, T, H, W]; shared, and kept by a small cache."""
        return wan_rope(self._grid(latents), self.config.attention_head_dim, self.ops.device)

    def _grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """T', H', W' of the tokens."""
        pt, ph, pw = self.config.patch_size
        return latents.shape[2] // pt, latents.shape[3] // ph, latents.shape[4] // pw

    def _forward(
        self,
        latents: torch.Tensor,
        modulations: Iterable[torch.Tensor],
        last: torch.Tensor,
        context: Context,
        causal: BlockCausal | None,
        rope: Rope,
        buffers: ActivationBuffers,
    ) -> torch.Tensor:
        ops, config, grid = self.ops, self.config, self._grid(latents)
        latents = latents.to(ops.device, ops.dtype)
        tokens = buffers.get("tokens", (latents.shape[0], math.prod(grid), config.dim), latents)
        x = ops.patch_embed(latents, self.patch, out=tokens)

        for i, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            image = context.image[i] if context.image is not None else None
            x = block(x, modulation, rope, context.text[i], context.text_bias, image, causal, buffers)

        shift, scale = last.unbind(2)
        patches = ops.linear(x, self.proj_out, norm=Norm(config.eps, scale=scale, shift=shift))
        return ops.unpatchify(patches, grid, config.patch_size).float()

    def _embed(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[R] or [R, G] → the time embedding [R, G, C] and the blocks' modulation [R, G, 6, C], fp32."""
        timesteps = timesteps if timesteps.ndim == 2 else timesteps.unsqueeze(1)
        time = self.time_embed(sinusoid(timesteps, self.config.freq_dim))
        modulation = self.ops.linear(torch.nn.functional.silu(time), self.time_proj)
        return time, modulation.view(*time.shape[:2], 6, -1)


class ImageEmbedding:
    """CLIP tokens to the transformer's width (Wan 2.1 I2V; with `pos_embed`, first and last frame)."""

    def __init__(self, weights: Weights, ops: Ops) -> None:
        self.ops = ops
        self.norm1 = (weights["norm1.weight"].to(ops.device).float(), weights["norm1.bias"].to(ops.device).float())
        self.ff = Mlp(weights, ("ff.net.0.proj", "ff.net.2"), "gelu", ops)
        self.norm2 = (weights["norm2.weight"].to(ops.device).float(), weights["norm2.bias"].to(ops.device).float())
        position = weights.get("pos_embed")
        self.position = position.to(ops.device, ops.dtype) if position is not None else None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image: [R, L, image_dim] → [R, L, C]; with positions two images of one sample become one row."""
        if self.position is not None:
            image = image.reshape(-1, 2 * image.shape[1], image.shape[2]) + self.position
        h = self.ops.norm_modulate(image, eps=1e-5, weight=self.norm1[0], bias=self.norm1[1])
        h = self.ff(h)
        return self.ops.norm_modulate(h, eps=1e-5, weight=self.norm2[0], bias=self.norm2[1])
