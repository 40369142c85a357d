"""attention: softmax(q·kᵀ·scale + bias)·v over every pattern that video transformers use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from kinema.ops.attention.libraries import FLASH_ATTN, SDPA
from kinema.ops.common import Implementation, Op, QuantKind, Rope, Target
from kinema.ops.common.native import cpu_implementation, multiplies_bf16
from kinema.ops.common.triton_target import fp8_unsupported, quantize_unsupported, triton_implementation

FP8_BLOCK = 128  # keys that share a scale in 8 bits
FP8_PEAK = 256.0  # the largest weight in 8 bits: a power of two below e4m3's 448
INT8_TOP = 90.0  # the largest code: two products of 0 to 180 and −90 to 90 fit the 16 bits in which AVX2 adds them


@dataclass(frozen=True)
class KV:
    """One segment of keys and values.

    k, v: [B, N, R, D], any stride over B, N and R; R may be 0 (a cache that holds nothing yet). lengths: [B] int32 or
    int64, how many leading keys of each sample are real, 0 to R (None: all); what follows them is not read and may hold
    NaN (a cache's free slots). rope: rotates the keys on read (a cache stores them un-rotated, so that its window can
    move; slots may be in any order, since softmax is invariant to it).
    """

    k: torch.Tensor
    v: torch.Tensor
    lengths: torch.Tensor | None = None
    rope: Rope | None = None


@dataclass(frozen=True)
class BlockCausal:
    """Query i of a segment sees key j of the last KV segment iff j // block ≤ (i + offset) // block.

    Full attention inside a block (the tokens of a chunk of frames), causal between blocks. Earlier KV
    segments (the cache) are seen whole. offset: position of query 0 among the last segment's keys.
    """

    block: int
    offset: int = 0


@dataclass(frozen=True)
class BlockList:
    """Block-sparse attention: which tiles of keys each tile of queries reads.

    indices: [B or 1, N or 1, ⌈Sq/q_block⌉, M] int32 or int64, tiles of keys in any order, no repeats, each below
    ⌈ΣR/k_block⌉; counts: the same without M, how many of them are used, 0 to M (the rest may hold anything). A tile in
    no list is not read. Windows, tiles and radial patterns are all such lists.
    """

    q_block: int
    k_block: int
    indices: torch.Tensor
    counts: torch.Tensor


class Attention(Protocol):
    def __call__(
        self,
        q: torch.Tensor | tuple[torch.Tensor, ...],
        kv: KV | tuple[KV, ...],
        *,
        scale: float | None = None,
        bias: torch.Tensor | None = None,
        causal: BlockCausal | None = None,
        blocks: BlockList | None = None,
        residual: torch.Tensor | None = None,
        quantize: QuantKind | None = None,
        out: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Every query attends to every real key of all KV segments, as if they were concatenated.

        q: [B, N, S, D], any stride over B, N and S, in up to two segments (video and text, in either order).
        kv: up to three segments (a cache, video, text), k in q's dtype and v too, or in fp32 where q and k are bf16: an
        implementation may then round values and weights to bf16 as well, and sums the weights as they are rounded. A
        fused implementation concatenates
        nothing. A segment of queries or keys may be empty.
        scale: 1/√D if None (UMT5 passes 1). bias: added to the logits, [B or 1, N or 1, ΣSq or 1, ΣR], any
        strides; −inf masks a key, which must be finite all the same.
        causal, blocks: only with one query segment; blocks index the concatenated keys.
        residual: [B, S, N·D], added to the result (two softmaxes over one query: Wan's image attention).
        out: one for each query segment. The first may be `residual` itself; otherwise they share no memory with what
        is read, nor with one another.
        A query that sees no key at all gives 0 (or its residual). Logits and sums in fp32.
        quantize: "fp8" or "int8"; lossy, and specified down to each rounding. "fp8" multiplies in e4m3:

        - x ≈ data · s with s = max(max|x|, 1e-12) / 448, to nearest even. Queries have one s per token and head, keys
          and values one per FP8_BLOCK slots of a segment (from its slot 0) and head, over the real ones, after the
          rotation; NaN, which only slots that no query sees may hold, is ignored.
        - Keys are taken tile by tile. A weight is e4m3(FP8_PEAK · exp(logit − m)) with m the query's largest logit so
          far, its own tile's included. So it is at most FP8_PEAK and never saturates, whatever the logits; and tiles
          (128 keys in the reference, their order and size an implementation's choice) change its rounding only.
        - Row sums are of these rounded weights: values of 1 give 1.

        "int8" computes the logits from integers; weights, values and sums are as without it:

        - x ≈ data · s with s = max(max|x|, 1e-12) / INT8_TOP, data integers, to nearest even. Queries and keys have
          one s per token and head.
        - Keys are rounded after the rotation, and after subtracting their mean, which shifts all logits of a query
          alike. It is that of a head's real keys in all segments, channel by channel, summed in fp64 and rounded to
          fp32 (not for fp64 inputs). Values that are not finite, which only unseen keys may hold, count as 0 in it.
        - Sums of products are integers; each becomes a logit in fp32, times both s and scale.

        Returns one contiguous [B, S, N·D] per query segment, in v's dtype, ready for the output projection. A misfit is
        a ValueError, before anything is read (check.py). The values of lengths and lists are checked on a CPU only: on
        a GPU, to avoid a synchronisation, lengths are clamped to the slots, and lists have to be valid.
        """
        ...


def _in_triton(target: Target, kind: QuantKind) -> list[str]:
    return fp8_unsupported(target) if kind == "fp8" else [f"multiplies in fp8, not in {kind}"]


def _on_a_cpu(target: Target, kind: QuantKind) -> list[str]:
    return [] if kind == "int8" else [f"multiplies in int8, not in {kind}"]


def _in_pytorch(target: Target, kind: QuantKind) -> list[str]:
    return []


def operand_dtype(target: Target) -> torch.dtype:
    """Of queries and keys: on a CPU bf16 where it has products of that, and linears round to as few bits or fewer."""
    rounds = target.precision.weights in (torch.bfloat16, torch.float8_e4m3fn, torch.int8)
    native = target.device.type == "cpu" and multiplies_bf16()
    return torch.bfloat16 if rounds and native else target.precision.activations


def _result(
    q: torch.Tensor | tuple[torch.Tensor, ...], kv: KV | tuple[KV, ...], **_: object
) -> tuple[torch.Tensor, ...]:
    queries, like = q if isinstance(q, tuple) else (q,), (kv if isinstance(kv, KV) else kv[0]).v
    return tuple(like.new_empty(part.shape[0], part.shape[2], part.shape[1] * part.shape[3]) for part in queries)


OP = Op(
    "attention",
    ("attention",),
    (
        FLASH_ATTN,
        SDPA,
        replace(triton_implementation("attention", quantize_unsupported), quantizes=_in_triton),
        replace(cpu_implementation("attention"), quantizes=_on_a_cpu, operands=operand_dtype),
        Implementation("reference", "kinema.ops.attention.reference", quantizes=_in_pytorch),
    ),
    _result,
)
