"""The transformer's ops as torch.library operators, each with a fake: what compiled code calls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.library import custom_op

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import Quantized, Rope
from kinema.ops.norm_modulate import Norm
from kinema.ops.patch_embed import PatchEmbedWeight
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.table import Ops


class Entry:
    """What a number stands for; kept alive by whoever holds the weight or the ops."""

    def __init__(self, value: Any) -> None:
        self.value = value


_entries: WeakValueDictionary[int, Entry] = WeakValueDictionary()
_numbers = itertools.count()


def register(value: Any) -> tuple[int, Entry]:
    """The number by which operators know a value, as long as the entry lives."""
    number, entry = next(_numbers), Entry(value)
    _entries[number] = entry
    return number, entry


def _ops(number: int) -> Ops:
    return cast("Ops", _entries[number].value)


@custom_op("kinema::norm_modulate", mutates_args=())
def _norm_modulate(
    ops: int,
    x: Tensor,
    eps: float,
    norm: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    kind = cast("Any", norm)
    return _ops(ops).norm_modulate(x, norm=kind, eps=eps, weight=weight, bias=bias, scale=scale, shift=shift)


@_norm_modulate.register_fake
def _(ops: int, x: Tensor, *rest: Any, **options: Any) -> Tensor:
    return x.new_empty(x.shape)


@custom_op("kinema::norm_modulate_quantized", mutates_args=())
def _norm_modulate_quantized(
    ops: int,
    x: Tensor,
    kind: str,
    eps: float,
    norm: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    norm_kind, quant_kind = cast("Any", norm), cast("Any", kind)
    y: Quantized = _ops(ops).norm_modulate(
        x, norm=norm_kind, eps=eps, weight=weight, bias=bias, scale=scale, shift=shift, quantize=quant_kind
    )
    return y.data, y.scale


@_norm_modulate_quantized.register_fake
def _(ops: int, x: Tensor, kind: str, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float8_e4m3fn if kind == "fp8" else torch.int8
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@custom_op("kinema::qk_norm_rope", mutates_args=())
def _qk_norm_rope(
    ops: int,
    x: Tensor,
    heads: int,
    kind: str | None = None,
    eps: float = 0.0,
    across_heads: bool = False,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = True,
    start: int = 0,
) -> Tensor:
    norm = None if kind is None else HeadNorm(cast("Any", kind), eps, weight, bias, across_heads)
    rope = None if cos is None or sin is None else Rope(cos, sin, interleaved, start)
    return _ops(ops).qk_norm_rope(x, heads, norm=norm, rope=rope)


@_qk_norm_rope.register_fake
def _(ops: int, x: Tensor, heads: int, *rest: Any, **options: Any) -> Tensor:
    return x.new_empty(x.shape[0], heads, x.shape[1], x.shape[2] // heads)


@custom_op("kinema::attention", mutates_args=())
def _attention(
    ops: int,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    lengths: Sequence[Tensor | None],
    cos: Sequence[Tensor | None],
    sin: Sequence[Tensor | None],
    interleaved: Sequence[int],
    start: Sequence[int],
    causal: Sequence[int] | None,
    tiles: Sequence[int] | None,
    lists: Sequence[Tensor],
    scale: float | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    quantize: str | None = None,
) -> list[Tensor]:
    ropes = [
        Rope(c, s, bool(i), t) if c is not None and s is not None else None
        for c, s, i, t in zip(cos, sin, interleaved, start, strict=True)
    ]
    segments = tuple(KV(*parts) for parts in zip(k, v, lengths, ropes, strict=True))
    outputs = _ops(ops).attention(
        tuple(q),
        segments,
        scale=scale,
        bias=bias,
        residual=residual,
        quantize=cast("Any", quantize),
        causal=BlockCausal(*causal) if causal is not None else None,
        blocks=BlockList(tiles[0], tiles[1], *lists) if tiles is not None else None,
    )
    return list(outputs)


@_attention.register_fake
def _(ops: int, q: Sequence[Tensor], *rest: Any, **options: Any) -> list[Tensor]:
    return [part.new_empty(part.shape[0], part.shape[2], part.shape[1] * part.shape[3]) for part in q]


@custom_op("kinema::linear", mutates_args=())
def _linear(
    ops: int,
    x: Sequence[Tensor],
    quantized: bool,
    weight: int,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    norm_kind: str | None = None,
    eps: float = 0.0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    norm = None if norm_kind is None else Norm(eps, cast("Any", norm_kind), norm_weight, norm_bias, scale, shift)
    given = Quantized(x[0], x[1]) if quantized else tuple(x) if len(x) > 1 else x[0]
    packed = _entries[weight].value
    return _ops(ops).linear(
        cast("Any", given), packed, norm=norm, activation=cast("Any", activation), gate=gate, residual=residual
    )


@_linear.register_fake
def _(ops: int, x: Sequence[Tensor], quantized: bool, weight: int, *rest: Any, **options: Any) -> Tensor:
    dtype = _ops(ops).dtype if quantized else x[0].dtype
    return x[0].new_empty((*x[0].shape[:-1], _entries[weight].value.out_features), dtype=dtype)


@custom_op("kinema::patch_embed", mutates_args=())
def _patch_embed(ops: int, x: Tensor, weight: int, position: Tensor | None) -> Tensor:
    return _ops(ops).patch_embed(x, _entries[weight].value, position=position)


@_patch_embed.register_fake
def _(ops: int, x: Tensor, weight: int, position: Tensor | None) -> Tensor:
    packed: PatchEmbedWeight = _entries[weight].value
    tokens = 1
    for size, patch in zip(x.shape[2:], packed.patch, strict=True):
        tokens *= size // patch
    return x.new_empty(x.shape[0], tokens, packed.out_features)


@custom_op("kinema::unpatchify", mutates_args=())
def _unpatchify(ops: int, x: Tensor, grid: Sequence[int], patch: Sequence[int], order: str = "patch_first") -> Tensor:
    return _ops(ops).unpatchify(x, cast("Any", tuple(grid)), cast("Any", tuple(patch)), order=cast("Any", order))


@_unpatchify.register_fake
def _(ops: int, x: Tensor, grid: Sequence[int], patch: Sequence[int], order: str = "patch_first") -> Tensor:
    (t, h, w), (pt, ph, pw) = grid, patch
    return x.new_empty(x.shape[0], x.shape[2] // (pt * ph * pw), t * pt, h * ph, w * pw)
