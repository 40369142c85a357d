"""How a case of cases.py calls its op: weights packed, inputs laid out in memory as a model lays them out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from kinema.ops.attention import KV, BlockCausal, BlockList, operand_dtype
from kinema.ops.common import Quantized, QuantKind, Rope, Target
from kinema.ops.norm_modulate import Norm
from kinema.ops.qk_norm_rope import HeadNorm

Call = partial[Any]
Functions = Any  # the functions of one implementation, by name: a module or a namespace


class Inputs:
    """Tensors of a case on one device: random, or on the meta device only their shapes."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu").to(self.device, dtype)

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """Given numbers (lengths, block lists) on the device."""
        return values.to(self.device)

    def target(self, target: Target) -> Target:
        """What a weight is packed for."""
        return target

    def video(self, channels: int, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[1, C, T, H, W], channels innermost in memory, as the VAE keeps it."""
        return self(1, *size, channels, dtype=dtype).movedim(-1, 1)


def linear(
    rows: int,
    into: int,
    out: int,
    functions: Functions,
    target: Target,
    new: Inputs,
    *,
    norm: int | None = None,
    activation: str = "none",
    gate: int | None = None,
    residual: bool = False,
    second: int = 0,
    gated: bool = False,
    bias: bool = True,
) -> Call:
    """norm, gate: groups of tokens of their modulation. second: features of a second source.

    8-bit precisions get their input in 8 bits, as the op before leaves it on a GPU; a CPU's product rounds it itself.
    """
    dtype, kind = target.precision.activations, target.precision.quantize_activations
    weight = functions.pack_linear(
        new(out, into + second),
        new(out) if bias else None,
        gate_weight=new(out, into + second) if gated else None,
        gate_bias=new(out) if gated and bias else None,
        target=new.target(target),
    )
    x: Any = new(1, rows, into, dtype=dtype)
    if second:
        x = (x, new(1, rows, second, dtype=dtype))
    elif kind is not None and norm is None and target.device.type != "cpu":
        stored = torch.float8_e4m3fn if kind == "fp8" else torch.int8
        x = Quantized(new(1, rows, into).to(stored), new(1, rows, 1))
    table = new(1, gate, 6, out)[:, :, 2] if gate is not None else None
    stream = new(1, rows, out, dtype=dtype) if residual else None
    of = None
    if norm is not None:
        modulation = new(1, norm, 6, into)
        of = Norm(1e-6, scale=modulation[:, :, 1], shift=modulation[:, :, 0])
    return partial(functions.linear, x, weight, norm=of, activation=activation, gate=table, residual=stream)


def modulated(
    rows: int, channels: int, groups: int, functions: Functions, target: Target, new: Inputs, *, quantized: bool = False
) -> Call:
    table = new(1, groups, 6, channels)
    quantize = target.precision.quantize_activations if quantized else None
    x = new(1, rows, channels, dtype=target.precision.activations)
    shift, scale = table[:, :, 0], table[:, :, 1]
    return partial(functions.norm_modulate, x, eps=1e-6, scale=scale, shift=shift, quantize=quantize)


def affine(rows: int, channels: int, norm: str, functions: Functions, target: Target, new: Inputs) -> Call:
    x = new(1, rows, channels, dtype=target.precision.activations)
    bias = new(channels) if norm == "layer" else None
    return partial(functions.norm_modulate, x, norm=norm, eps=1e-6, weight=new(channels), bias=bias)


def quantize(rows: int, channels: int, functions: Functions, target: Target, new: Inputs) -> Call:
    x = new(1, rows, channels, dtype=target.precision.activations)
    return partial(functions.quantize, x, target.precision.quantize_activations)


def _rope(new: Inputs, tokens: int, head_dim: int, *, interleaved: bool = True) -> Rope:
    return Rope(new(tokens, head_dim // 2), new(tokens, head_dim // 2), interleaved)


def qk(
    rows: int,
    heads: int,
    head_dim: int,
    functions: Functions,
    target: Target,
    new: Inputs,
    *,
    operands: int = 1,
    parts: int = 1,
    rope: int = 0,
    norm: str = "rms",
    across: bool = True,
    interleaved: bool = True,
) -> Call:
    """operands: how many are normalised, of the parts that the projection is fused of. rope: tokens that rotate."""
    channels = operands * heads * head_dim
    x = new(1, rows, max(operands, parts) * heads * head_dim, dtype=target.precision.activations)[..., :channels]
    weight = new(channels if across else operands * head_dim)
    head_norm = HeadNorm("rms", 1e-6, weight, across_heads=across, operands=operands) if norm == "rms" else None
    rotation = _rope(new, rope, head_dim, interleaved=interleaved) if rope else None
    given = operand_dtype(target)
    dtype = given if norm == "rms" and given != target.precision.activations else None  # values stay as they are
    return partial(functions.qk_norm_rope, x, operands * heads, norm=head_norm, rope=rotation, dtype=dtype)


def attention(
    heads: int,
    head_dim: int,
    queries: int,
    keys: int,
    functions: Functions,
    target: Target,
    new: Inputs,
    *,
    fused: bool = False,
    bias: tuple[int, ...] | None = None,
    scale: float | None = None,
    lengths: bool = False,
    causal: int = 0,
    sparse: int = 0,
    cache: int = 0,
    quantize: QuantKind | None = None,
) -> Call:
    """fused: v is a slice of the projection. sparse: one tile of keys in so many is read. cache: keys before these."""
    dtype = target.precision.activations
    given = operand_dtype(target)
    q, k = (new(1, heads, n, head_dim, dtype=given) for n in (queries, keys))
    v = new(1, heads, keys, head_dim, dtype=dtype)
    if fused:
        v = new(1, keys, 3, heads, head_dim, dtype=dtype)[:, :, 2].transpose(1, 2)
    kv: Any = KV(k, v, new.whole(torch.tensor([keys - 7], dtype=torch.int64, device="cpu")) if lengths else None)
    if cache:
        past_k, past_v = (new(1, heads, cache, head_dim, dtype=t) for t in (given, dtype))
        kv = (KV(past_k, past_v, rope=_rope(new, cache, head_dim)), kv)
    blocks = None
    if sparse:
        tiles = -(-keys // 128)
        used = -(-tiles // sparse)
        indices = torch.arange(used, dtype=torch.int32, device="cpu").mul(sparse)
        indices = indices.expand(1, 1, -(-queries // 128), used).contiguous()
        blocks = BlockList(128, 128, new.whole(indices), new.whole(torch.full_like(indices[..., 0], used)))
    return partial(
        functions.attention,
        q,
        kv,
        scale=scale,
        bias=new(*bias) if bias is not None else None,
        causal=BlockCausal(causal) if causal else None,
        blocks=blocks,
        quantize=quantize,
    )


def patch_embed(
    channels: int, dim: int, size: tuple[int, ...], functions: Functions, target: Target, new: Inputs
) -> Call:
    weight = functions.pack_patch_embed(new(dim, channels, 1, 2, 2), new(dim), target=target)
    return partial(functions.patch_embed, new(1, channels, *size, dtype=target.precision.activations), weight)


def unpatchify(channels: int, size: tuple[int, ...], functions: Functions, target: Target, new: Inputs) -> Call:
    frames, height, width = size[0], size[1] // 2, size[2] // 2
    x = new(1, frames * height * width, 4 * channels, dtype=target.precision.activations)
    return partial(functions.unpatchify, x, (frames, height, width), (1, 2, 2))


def scheduler_step(shape: tuple[int, ...], functions: Functions, target: Target, new: Inputs) -> Call:
    """Guided UniPC of order 2: sample, two predictions and three of history make four outputs."""
    terms = [new(1, *shape) for _ in range(6)]
    return partial(functions.scheduler_step, terms, new(1, 4, 6))


def conv3d(
    into: int,
    out: int,
    kernel: tuple[int, int, int],
    size: tuple[int, int, int],
    functions: Functions,
    target: Target,
    new: Inputs,
    *,
    norm: bool = False,
    residual: bool = False,
    upsample: int = 1,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] | None = None,
) -> Call:
    """size: T, H, W of the input. The past is a cache, as in a clip that is decoded in chunks."""
    weight = functions.pack_conv3d(new(out, into, *kernel), new(out), stride=stride, padding=padding, target=target)
    frames, height, width = (n * up for n, up in zip(size, (1, upsample, upsample), strict=True))
    past = weight.history
    return partial(
        functions.conv3d,
        new.video(into, *size),
        weight,
        norm=new(into) if norm else None,
        activation="silu" if norm else "none",
        upsample=upsample,
        cache=new.video(into, past, height, width) if past else None,
        residual=new.video(out, frames, height, width) if residual else None,
    )
