"""The minimum work of a call of an op: FLOPs, and bytes between the chip and its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any, Literal

import torch

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.calls import Call
from kinema.ops.common import Quantized
from kinema.ops.conv3d import Conv3dWeight
from kinema.ops.linear import LinearWeight
from kinema.ops.patch_embed import PatchEmbedWeight

Unit = Literal["fp32", "bf16", "fp8", "int8"]  # of arithmetic; fp16 is as fast as bf16 everywhere


@dataclass(frozen=True)
class Count:
    """flops on `unit`, exponentials, and the least traffic: everything read or written, once."""

    unit: Unit
    flops: int
    exponentials: int
    bytes: int


def count(op: str, call: Call, result: Any) -> Count:
    """The work of `call`, one of calls.py; `result` is what it returned (meta tensors are enough)."""
    unit, flops, exponentials, unread = _WORK[op](result, *call.args, **call.keywords)
    return Count(unit, flops, exponentials, _traffic((call.args, call.keywords)) + _traffic(result) - unread)


Work = tuple[Unit, int, int, int]  # unit, FLOPs, exponentials, bytes of the arguments that are not read


def _linear(result: torch.Tensor, x: Any, weight: LinearWeight, **_: Any) -> Work:
    """2·S·K·O, twice of gated weights."""
    factors = x.data if isinstance(x, Quantized) else x[0] if isinstance(x, tuple) else x
    rows = result.numel() // result.shape[-1]
    flops = 2 * rows * weight.in_features * weight.out_features * (2 if weight.gated else 1)
    kind = getattr(weight, "quantize_activations", None)  # then x is, or becomes, 8-bit
    return kind or unit_of(factors.dtype), flops, 0, 0


def _attention(
    result: tuple[torch.Tensor, ...],
    q: Any,
    kv: KV | tuple[KV, ...],
    *,
    causal: BlockCausal | None = None,
    blocks: BlockList | None = None,
    quantize: str | None = None,
    **_: Any,
) -> Work:
    """4·D FLOPs and one exponential for every pair of a query and a key that it sees."""
    queries = q if isinstance(q, tuple) else (q,)
    segments = kv if isinstance(kv, tuple) else (kv,)
    batch, heads, _, head_dim = queries[0].shape
    rows, keys = sum(s.shape[2] for s in queries), sum(s.k.shape[2] for s in segments)
    pairs = rows * keys
    if causal is not None:
        last = segments[-1].k.shape[2]
        seen = (min((i + causal.offset) // causal.block * causal.block + causal.block, last) for i in range(rows))
        pairs = rows * (keys - last) + sum(seen)
    elif blocks is not None:
        pairs = rows * min(blocks.indices.shape[-1] * blocks.k_block, keys)
    pairs *= batch * heads
    return "fp8" if quantize == "fp8" else unit_of(segments[0].v.dtype), 4 * head_dim * pairs, pairs, 0


def _conv3d(result: torch.Tensor, x: torch.Tensor, weight: Conv3dWeight, **given: Any) -> Work:
    """2·kernel·Cin for every output; a cache is read and written."""
    cache = given.get("cache")
    written = cache.nbytes if cache is not None else 0
    return unit_of(x.dtype), 2 * prod(weight.kernel) * weight.in_channels * result.numel(), 0, -written


def _patch_embed(result: torch.Tensor, x: torch.Tensor, weight: PatchEmbedWeight, **_: Any) -> Work:
    return unit_of(x.dtype), 2 * weight.in_channels * prod(weight.patch) * result.numel(), 0, 0


def _scheduler_step(
    result: tuple[torch.Tensor, ...], terms: list[torch.Tensor], coefficients: torch.Tensor, **_: Any
) -> Work:
    return "fp32", 2 * len(terms) * sum(r.numel() for r in result), 0, 0


def _of_values(flops: int) -> Callable[..., Work]:
    """This many FLOPs per value of the result, outside tensor cores."""

    def work(result: torch.Tensor | Quantized, *_: Any, **__: Any) -> Work:
        values = result.data if isinstance(result, Quantized) else result
        return "fp32", flops * values.numel(), 0, 0

    return work


_WORK: dict[str, Callable[..., Work]] = {
    "linear": _linear,
    "attention": _attention,
    "conv3d": _conv3d,
    "patch_embed": _patch_embed,
    "scheduler_step": _scheduler_step,
    "norm_modulate": _of_values(8),
    "qk_norm_rope": _of_values(7),
    "quantize": _of_values(3),
    "unpatchify": _of_values(0),
}


def unit_of(dtype: torch.dtype) -> Unit:
    """The unit that multiplies two of `dtype`."""
    units: dict[torch.dtype, Unit] = {torch.float8_e4m3fn: "fp8", torch.int8: "int8", torch.float32: "fp32"}
    return units.get(dtype, "bf16")


def _traffic(value: Any) -> int:
    """Bytes of all tensors in `value`; broadcast axes count once."""
    if isinstance(value, torch.Tensor):
        sizes = (n for n, stride in zip(value.shape, value.stride(), strict=True) if stride)
        return prod(sizes) * value.itemsize
    if isinstance(value, dict):
        return sum(map(_traffic, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(_traffic, value))
    if is_dataclass(value):
        return sum(_traffic(getattr(value, f.name)) for f in fields(value))
    return 0
