"""`attention` by FlashAttention 2, 3 or 4, whichever is installed and fastest on the GPU.

It takes 16-bit calls whose operands can each be one sequence (whole.py): self-attention, joint attention with the text
in any order and of any length, cross-attention without a bias. In Wan 1.3B at 32 760 tokens these are 99.8 % of the
arithmetic. The rest goes to Triton where it runs, else to the reference: a bias (a prompt's folded padding), keys
rotated on read, block-causal and block-sparse patterns, lengths of the only keys, fp32, e4m3, and operands that are not
aligned to 16 bytes. Dao 2023, arXiv 2307.08691; Shah et al. 2024, arXiv 2407.08608.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.attention.check import checked
from kinema.ops.attention.libraries import Version, best_version
from kinema.ops.attention.whole import Whole, delivered, is_whole, joined, rest
from kinema.ops.common import QuantKind
from kinema.ops.common.launch import architecture
from kinema.ops.common.triton_device import describable


@checked
def attention(
    queries: tuple[torch.Tensor, ...],
    segments: tuple[KV, ...],
    *,
    scale: float | None,
    bias: torch.Tensor | None,
    causal: BlockCausal | None,
    blocks: BlockList | None,
    quantize: QuantKind | None,
    residual: torch.Tensor | None,
    outputs: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, ...]:
    options = {"bias": bias, "causal": causal, "blocks": blocks, "residual": residual, "quantize": quantize}
    arch = architecture(queries[0].device)
    version, module = _library(arch)
    if not (is_whole(queries, segments, scale, tails=True, **options) and _takes(version, arch, queries, segments)):
        done: tuple[torch.Tensor, ...] = rest(queries, quantize)(
            queries, segments, scale=scale, outputs=outputs, **options
        )
        return done
    call = joined(queries, segments)
    with torch.cuda.device(call.q.device) if call.q.is_cuda else nullcontext():
        y = _run(version, module, call, scale)
    return delivered(y, queries, residual, outputs)


@lru_cache(maxsize=8)
def _library(arch: int) -> tuple[Version, Any]:
    version = best_version(arch)
    if version is None:
        raise RuntimeError("no FlashAttention is installed for this GPU: install flash-attn, or use another backend")
    return version, importlib.import_module(version.module)


def _takes(version: Version, arch: int, queries: tuple[torch.Tensor, ...], segments: tuple[KV, ...]) -> bool:
    """Whether the kernels of `version` support it; they load 16 bytes at once without checking the alignment."""
    head_dim = queries[0].shape[3]
    if queries[0].dtype not in (torch.bfloat16, torch.float16):
        return False
    if head_dim % 8 or head_dim > version.longest_head(arch):
        return False
    alone: list[Sequence[torch.Tensor]] = [queries, [s.k for s in segments], [s.v for s in segments]]
    return all(describable(parts[0]) for parts in alone if len(parts) == 1)  # copies are aligned anyway


def _run(version: Version, module: Any, call: Whole, scale: float | None) -> torch.Tensor:
    """[B, S, N, D], dense. FlashAttention-4 also returns the log-sum-exp."""
    lengths = {} if call.lengths is None else {"seqused_k" if version.number == 4 else "cache_seqlens": call.lengths}
    run = getattr(module, version.whole if call.lengths is None else version.cut)
    y = run(call.q, call.k, call.v, softmax_scale=scale, **lengths)
    result: torch.Tensor = y[0] if isinstance(y, tuple) else y
    return result
