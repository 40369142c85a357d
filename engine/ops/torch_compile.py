"""Ops whose calls torch.compile takes whole: each becomes one opaque operator (operators.py).

Eager code calls the implementations directly and pays nothing. A packed weight is known to compiled code by a number,
since its layout is its implementation's own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from kinema.ops.attention import KV
from kinema.ops.common import Quantized, Rope
from kinema.ops.linear import LinearWeight
from kinema.ops.norm_modulate import Norm
from kinema.ops.operators import Entry, register
from kinema.ops.patch_embed import PatchEmbedWeight
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.table import Ops


@dataclass(frozen=True)
class NumberedLinear(LinearWeight):
    number: int
    entry: Entry


@dataclass(frozen=True)
class NumberedPatchEmbed(PatchEmbedWeight):
    number: int
    entry: Entry


def compilable(ops: Ops) -> Ops:
    """The same ops, whose calls become operators while torch.compile traces. `out=` is for eager code only."""
    number, entry = register(ops)
    calls = _Calls(ops, number, entry)
    packs = {**ops._pack, "pack_linear": calls.pack_linear, "pack_patch_embed": calls.pack_patch_embed}
    return replace(
        ops,
        norm_modulate=cast("Any", calls.norm_modulate),
        qk_norm_rope=calls.qk_norm_rope,
        attention=cast("Any", calls.attention),
        linear=calls.linear,
        patch_embed=calls.patch_embed,
        unpatchify=cast("Any", calls.unpatchify),
        _pack=packs,
    )


class _Calls:
    """Each contract's signature, flattened into an operator's under torch.compile."""

    def __init__(self, ops: Ops, number: int, entry: Entry) -> None:
        self.ops, self.number, self.entry = ops, number, entry

    def pack_linear(self, *args: Any, **kwargs: Any) -> NumberedLinear:
        packed = self.ops._pack["pack_linear"](*args, **kwargs)
        number, entry = register(packed)
        return NumberedLinear(
            packed.in_features,
            packed.out_features,
            packed.gated,
            packed.nbytes,
            packed.device,
            packed.activations,
            number=number,
            entry=entry,
        )

    def pack_patch_embed(self, *args: Any, **kwargs: Any) -> NumberedPatchEmbed:
        packed = self.ops._pack["pack_patch_embed"](*args, **kwargs)
        number, entry = register(packed)
        return NumberedPatchEmbed(
            packed.patch, packed.in_channels, packed.out_features, packed.device, number=number, entry=entry
        )

    def norm_modulate(self, x: Tensor, **options: Any) -> Tensor | Quantized:
        if not torch.compiler.is_compiling():
            return cast("Tensor | Quantized", self.ops.norm_modulate(x, **options))
        _refuse_out(options)
        quantize = options.pop("quantize", None)
        if quantize is not None:
            return Quantized(*torch.ops.kinema.norm_modulate_quantized(self.number, x, kind=quantize, **options))
        return cast("Tensor", torch.ops.kinema.norm_modulate(self.number, x, **options))

    def qk_norm_rope(
        self,
        x: Tensor,
        heads: int,
        *,
        norm: HeadNorm | None = None,
        rope: Rope | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if not torch.compiler.is_compiling():
            return self.ops.qk_norm_rope(x, heads, norm=norm, rope=rope, out=out)
        _refuse_out({"out": out})
        normed = {} if norm is None else {"kind": norm.kind, "eps": norm.eps, "across_heads": norm.across_heads}
        weights = {} if norm is None else {"weight": norm.weight, "bias": norm.bias}
        turned: dict[str, Any] = {}
        if rope is not None:
            turned = {"cos": rope.cos, "sin": rope.sin, "interleaved": rope.interleaved, "start": rope.start}
        return cast("Tensor", torch.ops.kinema.qk_norm_rope(self.number, x, heads, **normed, **weights, **turned))

    def attention(self, q: Tensor | tuple[Tensor, ...], kv: KV | tuple[KV, ...], **options: Any) -> tuple[Tensor, ...]:
        if not torch.compiler.is_compiling():
            return self.ops.attention(q, kv, **options)
        _refuse_out(options)
        segments = kv if isinstance(kv, tuple) else (kv,)
        causal, blocks = options.pop("causal", None), options.pop("blocks", None)
        ropes = [s.rope for s in segments]
        outputs = torch.ops.kinema.attention(
            self.number,
            list(q) if isinstance(q, tuple) else [q],
            [s.k for s in segments],
            [s.v for s in segments],
            [s.lengths for s in segments],
            [rope.cos if rope is not None else None for rope in ropes],
            [rope.sin if rope is not None else None for rope in ropes],
            [int(rope.interleaved) if rope is not None else 0 for rope in ropes],
            [rope.start if rope is not None else 0 for rope in ropes],
            None if causal is None else [causal.block, causal.offset],
            None if blocks is None else [blocks.q_block, blocks.k_block],
            [] if blocks is None else [blocks.indices, blocks.counts],
            **options,
        )
        return tuple(outputs)

    def linear(self, x: Any, weight: LinearWeight, *, norm: Norm | None = None, **options: Any) -> Tensor:
        assert isinstance(weight, NumberedLinear)
        if not torch.compiler.is_compiling():
            return self.ops.linear(x, weight.entry.value, norm=norm, **options)
        _refuse_out(options)
        if norm is not None:
            options.update(norm_kind=norm.kind, eps=norm.eps, norm_weight=norm.weight, norm_bias=norm.bias)
            options.update(scale=norm.scale, shift=norm.shift)
        parts = [x.data, x.scale] if isinstance(x, Quantized) else list(x) if isinstance(x, tuple) else [x]
        quantized = isinstance(x, Quantized)
        return cast("Tensor", torch.ops.kinema.linear(self.number, parts, quantized, weight.number, **options))

    def patch_embed(
        self, x: Tensor, weight: PatchEmbedWeight, *, position: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        assert isinstance(weight, NumberedPatchEmbed)
        if not torch.compiler.is_compiling():
            return self.ops.patch_embed(x, weight.entry.value, position=position, out=out)
        _refuse_out({"out": out})
        return cast("Tensor", torch.ops.kinema.patch_embed(self.number, x, weight.number, position))

    def unpatchify(self, x: Tensor, grid: Sequence[int], patch: Sequence[int], **options: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            return self.ops.unpatchify(x, cast("Any", grid), cast("Any", patch), **options)
        _refuse_out(options)
        return cast("Tensor", torch.ops.kinema.unpatchify(self.number, x, list(grid), list(patch), **options))


def _refuse_out(options: dict[str, Any]) -> None:
    if options.pop("out", None) is not None:
        raise ValueError("compiled code has no out=: call the op without it")
