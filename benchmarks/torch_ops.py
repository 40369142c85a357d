"""torch's nearest single op for a call, which may do less (no epilogue, no modulation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kinema.ops.attention import KV
from kinema.ops.calls import Call


@dataclass(frozen=True)
class Nearest:
    """whole: the call computes all of the contract, not a part of it."""

    call: Callable[[], Any]
    whole: bool


def torch_call(op: str, call: Call) -> Nearest | None:
    """call: the reference's, whose packed weights torch can use. None where torch has no single op for it."""
    make = _MAKERS.get(op)
    return make(*call.args, **call.keywords) if make is not None else None


def _linear(x: Any, weight: Any, *, norm: Any, activation: str, gate: Any, residual: Any) -> Nearest | None:
    if not isinstance(x, torch.Tensor) or weight.scale is not None:
        return None
    bias = weight.bias.to(x.dtype) if weight.bias is not None else None
    whole = norm is None and activation == "none" and gate is None and residual is None and not weight.gated
    return Nearest(partial(F.linear, x, weight.weight.to(x.dtype), bias), whole)


def _attention(
    q: Any, kv: Any, *, scale: float | None, bias: torch.Tensor | None, causal: Any, blocks: Any, quantize: Any
) -> Nearest | None:
    if not isinstance(kv, KV) or kv.lengths is not None or kv.rope is not None:
        return None
    if causal is not None or blocks is not None or quantize is not None:
        return None
    q, k = (t.to(kv.v.dtype) for t in (q, kv.k))  # torch has one dtype for all three
    mask = bias.to(q.dtype) if bias is not None else None

    def call() -> torch.Tensor:  # [B, S, N·D], as the next projection reads it: a view of how torch lays it out
        return F.scaled_dot_product_attention(q, k, kv.v, mask, scale=scale).transpose(1, 2).flatten(2)

    return Nearest(call, whole=True)


def _norm_modulate(x: torch.Tensor, *, norm: str = "layer", eps: float, **given: Any) -> Nearest | None:
    if given.get("quantize") is not None:
        return None
    weight, bias = (w.to(x.dtype) if (w := given.get(name)) is not None else None for name in ("weight", "bias"))
    whole = given.get("scale") is None and given.get("shift") is None
    if norm == "layer":
        return Nearest(partial(F.layer_norm, x, x.shape[-1:], weight, bias, eps), whole)
    return Nearest(partial(F.rms_norm, x, x.shape[-1:], weight, eps), whole)


def _patch_embed(x: torch.Tensor, weight: Any, **_: Any) -> Nearest:
    bias = weight.bias.to(x.dtype) if weight.bias is not None else None
    matrix = weight.weight.to(x.dtype)
    # the convolution's result is channels-first: a transposed view of it is the contract's result
    return Nearest(lambda: F.conv3d(x, matrix, bias, stride=weight.patch).flatten(2).transpose(1, 2), whole=True)


def _conv3d(
    x: torch.Tensor, weight: Any, *, norm: Any, activation: str, upsample: int, cache: Any, residual: Any
) -> Nearest | None:
    top, bottom, left, right = weight.padding
    if upsample != 1 or top != bottom or left != right or (weight.history and cache is None):
        return None
    frames = torch.cat((cache, x), dim=2) if cache is not None else x
    call = partial(F.conv3d, frames, weight.weight, weight.bias, stride=weight.stride, padding=(0, top, left))
    return Nearest(call, norm is None and activation == "none" and residual is None)


_MAKERS: dict[str, Callable[..., Nearest | None]] = {
    "linear": _linear,
    "attention": _attention,
    "norm_modulate": _norm_modulate,
    "patch_embed": _patch_embed,
    "conv3d": _conv3d,
}
