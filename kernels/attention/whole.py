"""The calls of attention that libraries support: one sequence of queries and one of keys, with no mask but a length.

That is self-attention of any video model, joint attention of text and video, and cross-attention without a bias. The
segments of a joint call are concatenated, which pays off from JOIN_FROM queries on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from kinema.ops.attention import KV, OP
from kinema.ops.common import PRECISIONS, Target, fallback_for, write_result
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.launch import architecture, is_hip

# A copy moves 8 bytes per channel of a key, attention does 4 FLOPs for it and each query: at 3 TB/s and 640 TFLOP/s
# instead of Triton's 480, the figures of an H100, the two break even here. On a B200 they do at 310.
JOIN_FROM = 1280
_BY_DTYPE = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Whole:
    """q: [B, S, N, D]; k, v: [B, R, N, D], channels dense. lengths: [B] int32, how many leading keys are real."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    lengths: torch.Tensor | None


def is_whole(
    queries: tuple[torch.Tensor, ...],
    segments: tuple[KV, ...],
    scale: float | None,
    *,
    tails: bool,
    **options: object,
) -> bool:
    """Whether libraries support a call.

    tails: the library can mask keys at the end. Only if others are left: a query that sees nothing would need another
    pass. options: the call's other arguments. FlashAttention takes its maximum of unscaled logits, which is right for a
    positive scale only.
    """
    if scale is not None and scale <= 0:
        return False
    if any(options[name] is not None for name in ("bias", "causal", "blocks", "quantize")):
        return False
    if any(s.rope is not None for s in segments) or (options["residual"] is not None and len(queries) > 1):
        return False
    if len(queries) + len(segments) > 2 and sum(part.shape[2] for part in queries) < JOIN_FROM:
        return False
    cut = sum(s.lengths is not None for s in segments)
    full = sum(s.k.shape[2] for s in segments if s.lengths is None)
    return cut == 0 or (tails and cut == 1 and full > 0)


def joined(queries: tuple[torch.Tensor, ...], segments: tuple[KV, ...]) -> Whole:
    """The call's operands, concatenated. A segment with lengths comes last: the order of keys does not matter."""
    ordered = sorted(segments, key=lambda s: s.lengths is not None)
    last, lengths = ordered[-1], None
    if last.lengths is not None:
        # a library trusts a length on the GPU, which nothing has checked
        real = last.lengths.to(last.k.device, torch.int32).clamp(0, last.k.shape[2])
        lengths = real + sum(s.k.shape[2] for s in ordered[:-1])
    values = [s.v if s.lengths is None else _cleared(s) for s in ordered]
    return Whole(_in_one(list(queries)), _in_one([s.k for s in ordered]), _in_one(values), lengths)


def delivered(
    y: torch.Tensor,
    queries: tuple[torch.Tensor, ...],
    residual: torch.Tensor | None,
    outputs: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, ...]:
    """A library's result y [B, ΣS, N, D] in the contract's form: one [B, S, N·D] per query segment."""
    y = y.flatten(2)
    if residual is not None:
        y = residual + y
    parts = torch.split(y, [part.shape[2] for part in queries], dim=1)
    return tuple(write_result(part.contiguous(), buffer) for part, buffer in zip(parts, outputs, strict=True))


def rest(queries: tuple[torch.Tensor, ...], quantize: str | None) -> Callable[..., Any]:
    """What runs the other calls, which are checked already: Triton where it runs, else the reference."""
    device = queries[0].device
    precision = "fp8" if quantize is not None else _BY_DTYPE.get(queries[0].dtype, "fp32")
    return _rest(device, precision, architecture(device), is_hip())


@lru_cache(maxsize=64)
def _rest(device: torch.device, precision: str, arch: int, hip: bool) -> Callable[..., Any]:
    return unchecked(fallback_for(OP, Target(device, PRECISIONS["cuda"][precision])).load().attention)


def _cleared(segment: KV) -> torch.Tensor:
    """Values, 0 beyond a length: what is there may be NaN, and libraries multiply it by a weight of 0."""
    assert segment.lengths is not None
    slots = torch.arange(segment.v.shape[2], dtype=torch.int64, device=segment.v.device)
    real = slots < segment.lengths.to(segment.v.device)[:, None]
    return torch.where(real[:, None, :, None], segment.v, 0.0)


def _in_one(parts: list[torch.Tensor]) -> torch.Tensor:
    """Segments [B, N, S, D] → [B, ΣS, N, D]."""
    turned = [part.transpose(1, 2) for part in parts]
    return turned[0] if len(turned) == 1 else torch.cat(turned, dim=1)
