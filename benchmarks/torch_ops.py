"""What torch itself offers for a call: its nearest single op, which may do less (no epilogue, no modulation)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kinema.bench.op_calls import Call
from kinema.ops.attention import KV


def torch_call(op: str, call: Call) -> Callable[[], Any] | None:
    """`call` is of the reference, whose packed weights torch takes; None where torch has no single op for it."""
    make = _MAKERS.get(op)
    return make(*call.args, **call.keywords) if make is not None else None


def _linear(x: Any, weight: Any, **_: Any) -> Callable[[], Any] | None:
    if not isinstance(x, torch.Tensor) or weight.scale is not None:
        return None
    bias = weight.bias.to(x.dtype) if weight.bias is not None else None
    return partial(F.linear, x, weight.weight.to(x.dtype), bias)


def _attention(
    q: Any, kv: Any, *, scale: float | None, bias: torch.Tensor | None, causal: Any, blocks: Any, **_: Any
) -> Callable[[], Any] | None:
    if not isinstance(kv, KV) or kv.lengths is not None or kv.rope is not None or causal is not None or blocks:
        return None
    mask = bias.to(q.dtype) if bias is not None else None
    return partial(F.scaled_dot_product_attention, q, kv.k, kv.v, attn_mask=mask, scale=scale)


def _norm_modulate(x: torch.Tensor, *, norm: str = "layer", eps: float, **given: Any) -> Callable[[], Any] | None:
    if given.get("quantize") is not None:
        return None
    weight, bias = (w.to(x.dtype) if (w := given.get(name)) is not None else None for name in ("weight", "bias"))
    if norm == "layer":
        return partial(F.layer_norm, x, x.shape[-1:], weight, bias, eps)
    return partial(F.rms_norm, x, x.shape[-1:], weight, eps)


def _patch_embed(x: torch.Tensor, weight: Any, **_: Any) -> Callable[[], Any]:
    bias = weight.bias.to(x.dtype) if weight.bias is not None else None
    return partial(F.conv3d, x, weight.weight.to(x.dtype), bias, stride=weight.patch)


def _conv3d(x: torch.Tensor, weight: Any, *, upsample: int, cache: Any, **_: Any) -> Callable[[], Any] | None:
    top, bottom, left, right = weight.padding
    if upsample != 1 or top != bottom or left != right or (weight.history and cache is None):
        return None
    whole = torch.cat((cache, x), dim=2) if cache is not None else x
    return partial(F.conv3d, whole, weight.weight, weight.bias, stride=weight.stride, padding=(0, top, left))


_MAKERS: dict[str, Callable[..., Callable[[], Any] | None]] = {
    "linear": _linear,
    "attention": _attention,
    "norm_modulate": _norm_modulate,
    "patch_embed": _patch_embed,
    "conv3d": _conv3d,
}
