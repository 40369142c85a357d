"""What every implementation of `qk_norm_rope` refuses, and its result where there are no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import get_args

import torch

from kinema.ops.common import Rope
from kinema.ops.common.arguments import FLOATS, check_channels_dense, check_floats, check_out, misfit
from kinema.ops.norm_modulate import NormKind
from kinema.ops.qk_norm_rope import HeadNorm, QkNormRope

NORMS = get_args(NormKind)


def checked(run: Callable[..., torch.Tensor]) -> QkNormRope:
    """`run`, called only with valid arguments that are not empty; with `out` where its dtype is not x's."""

    @wraps(run)
    def qk_norm_rope(
        x: torch.Tensor,
        heads: int,
        *,
        norm: HeadNorm | None = None,
        rope: Rope | None = None,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if x.ndim != 3 or x.shape[2] < 1 or x.dtype not in FLOATS:
            raise misfit("x", x, "floats [B, S, N·D] with at least one channel")
        batch, tokens, channels = x.shape
        if heads < 1 or channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} heads")
        check_channels_dense("x", x)
        device, head_dim = x.device, channels // heads
        shape = (batch, heads, tokens, head_dim)
        read: tuple[torch.Tensor | None, ...] = (x,)
        if norm is not None:
            if norm.kind not in NORMS:
                raise ValueError(f"unknown norm {norm.kind!r}: wanted 'layer' or 'rms'")
            if norm.operands < 1 or heads % norm.operands:
                raise ValueError(f"{heads} heads do not split into {norm.operands} operands")
            normed = (channels if norm.across_heads else norm.operands * head_dim,)
            if norm.weight is not None:
                check_floats("the norm's weight", norm.weight, normed, device)
            if norm.bias is not None:
                check_floats("the norm's bias", norm.bias, normed, device)
            read += (norm.weight, norm.bias)
        if rope is not None:
            rope.check(batch, tokens, head_dim, device)
            read += (rope.cos, rope.sin)
        if dtype not in (None, x.dtype, torch.bfloat16):
            raise ValueError(f"the result of {x.dtype} is wanted in {dtype}: wanted bfloat16 or the same")
        dtype = dtype or x.dtype
        if out is not None:
            check_out(out, shape, dtype, device, apart=read)
        elif dtype != x.dtype or not x.numel():
            out = torch.empty(shape, dtype=dtype, device=device)
        return run(x, heads, norm, rope, out) if out is None or x.numel() else out

    return qk_norm_rope
