"""What every implementation of `attention` refuses, and its result where queries or keys are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from kinema.ops.attention import KV, Attention, BlockCausal, BlockList
from kinema.ops.common import QuantKind, write_result
from kinema.ops.common.arguments import FLOATS, INTEGERS, check_channels_dense, check_floats, check_out, misfit
from kinema.ops.common.quantized import KINDS

MOST_QUERIES, MOST_KEYS = 2, 3  # segments


def _nowhere(quantize: QuantKind | None) -> bool:
    return False


def checked(
    run: Callable[..., tuple[torch.Tensor, ...]], *, mixes: Callable[[QuantKind | None], bool] = _nowhere
) -> Attention:
    """`run`, called only with valid arguments and without empty segments; segments and outputs always in tuples.

    mixes: whether it takes q and k in bf16 beside v in fp32; else it gets them in fp32.
    """

    @wraps(run)
    def attention(
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
        queries = q if isinstance(q, tuple) else (q,)
        segments = kv if isinstance(kv, tuple) else (kv,)
        if not 1 <= len(queries) <= MOST_QUERIES or not 1 <= len(segments) <= MOST_KEYS:
            raise ValueError(
                f"{len(queries)} query and {len(segments)} key segments, "
                f"wanted 1 to {MOST_QUERIES} and 1 to {MOST_KEYS}"
            )
        if len(queries) > 1 and (causal is not None or blocks is not None or residual is not None):
            raise ValueError("causal, blocks and residual are for a single query segment")
        if quantize is not None and quantize not in KINDS:
            raise ValueError(f"attention does not quantize to {quantize!r}: wanted 'fp8', 'int8' or None")
        asked, seen, empty = _check_segments(queries, segments)
        if causal is not None and causal.block < 1:
            raise ValueError(f"causal blocks are of {causal.block} tokens, wanted at least 1")
        if bias is not None:
            _check_bias(bias, queries[0], asked, seen)
        if blocks is not None:
            _check_blocks(blocks, queries[0], asked, seen)
        outputs = _check_results(queries, segments, bias, residual, out)
        if queries[0].dtype != segments[0].v.dtype and not mixes(quantize):
            queries = tuple(x.to(segments[0].v.dtype) for x in queries)
            segments = tuple(replace(s, k=s.k.to(s.v.dtype)) for s in segments)
        empty = empty or (blocks is not None and not blocks.indices.shape[3])
        options = {"scale": scale, "bias": bias, "causal": causal, "blocks": blocks, "quantize": quantize}
        if empty:
            return _without_the_empty(run, queries, segments, outputs, residual, options)
        return run(queries, segments, **options, residual=residual, outputs=outputs)

    return attention


def _check_segments(queries: tuple[torch.Tensor, ...], segments: tuple[KV, ...]) -> tuple[int, int, bool]:
    """ΣSq, ΣR, and whether a segment is empty."""
    first = queries[0]
    if first.ndim != 4 or first.dtype not in FLOATS or not first.shape[1] * first.shape[3]:
        raise misfit("q", first, "floats [B, N, S, D] with at least one head and channel")
    batch, _, _, head_dim = first.shape
    wide = torch.float32 if first.dtype == torch.bfloat16 and segments[0].v.dtype == torch.float32 else first.dtype
    asked = [_tokens("q", x, first) for x in queries]
    seen = []
    for s in segments:
        slots = _tokens("k", s.k, first)
        if _tokens("v", s.v, first, wide) != slots:
            raise ValueError(f"k is {tuple(s.k.shape)} and v {tuple(s.v.shape)}, wanted the same")
        if s.lengths is not None:
            _check_lengths(s.lengths, batch, slots)
        if s.rope is not None:
            s.rope.check(batch, slots, head_dim, first.device)
        seen.append(slots)
    return sum(asked), sum(seen), not batch or 0 in asked or 0 in seen


def _tokens(name: str, t: torch.Tensor, q: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """S of t [B, N, S, D], which must match q in everything else, but for another `dtype`."""
    dtype = dtype or q.dtype
    if t.ndim == 4 and t.dtype == dtype and t.device == q.device:
        (b, n, count, d), (batch, heads, _, head_dim) = t.shape, q.shape
        if b == batch and n == heads and d == head_dim:
            check_channels_dense(name, t)
            return count
    batch, heads, _, head_dim = q.shape
    raise misfit(name, t, f"{dtype} of shape [{batch}, {heads}, tokens, {head_dim}] on {q.device}, as q")


def _check_lengths(lengths: torch.Tensor, batch: int, slots: int) -> None:
    """On a GPU their values are not read: implementations clamp them."""
    if lengths.shape != (batch,) or lengths.dtype not in INTEGERS:
        raise misfit("lengths", lengths, f"int32 or int64 [{batch}]")
    if lengths.is_cpu and not all(0 <= length <= slots for length in lengths.tolist()):
        raise ValueError(f"lengths are {lengths.tolist()}, wanted 0 to {slots}, the slots that there are")


def _check_bias(bias: torch.Tensor, q: torch.Tensor, asked: int, seen: int) -> None:
    batch, heads, _, _ = q.shape
    if bias.ndim == 4 and bias.dtype in FLOATS and bias.device == q.device:
        b, n, s, r = bias.shape
        if b in (1, batch) and n in (1, heads) and s in (1, asked) and r == seen:
            return
    raise misfit("bias", bias, f"floats [{batch} or 1, {heads} or 1, {asked} or 1, {seen}] on {q.device}")


def _check_blocks(blocks: BlockList, q: torch.Tensor, asked: int, seen: int) -> None:
    """On a GPU the lists' values are not read."""
    indices, counts = blocks.indices, blocks.counts
    if blocks.q_block < 1 or blocks.k_block < 1:
        raise ValueError(f"tiles are of {blocks.q_block} queries and {blocks.k_block} keys, wanted at least 1")
    batch, heads, _, _ = q.shape
    q_tiles, k_tiles = -(-asked // blocks.q_block), -(-seen // blocks.k_block)
    fits = indices.ndim == 4 and indices.shape[0] in (1, batch) and indices.shape[1] in (1, heads)
    if not fits or indices.shape[2] != q_tiles or indices.dtype not in INTEGERS:
        raise misfit(
            "the list of tiles", indices, f"int32 or int64 [{batch} or 1, {heads} or 1, {q_tiles} tiles of queries, M]"
        )
    if counts.shape != indices.shape[:3] or counts.dtype not in INTEGERS:
        raise misfit("the counts of tiles", counts, f"int32 or int64 {tuple(indices.shape[:3])}, one for each list")
    if not (counts.is_cpu and indices.is_cpu):
        return
    most = indices.shape[3]
    if bool(((counts < 0) | (counts > most)).any()):
        raise ValueError(f"counts of tiles are not all 0 to {most}, as many as are listed")
    used = torch.arange(most, device=counts.device, dtype=counts.dtype) < counts.unsqueeze(-1)
    if bool((used & ((indices < 0) | (indices >= k_tiles))).any()):
        raise ValueError(f"tiles are listed that are not 0 to {k_tiles - 1}, those of {seen} keys")


def _check_results(
    queries: tuple[torch.Tensor, ...],
    segments: tuple[KV, ...],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | tuple[torch.Tensor, ...] | None,
) -> tuple[torch.Tensor | None, ...]:
    """The output buffer of each query segment, None where the caller gave none."""
    batch, heads, tokens, head_dim = queries[0].shape
    dtype, device = segments[0].v.dtype, queries[0].device
    if residual is not None:
        check_floats("residual", residual, (batch, tokens, heads * head_dim), device)
        check_channels_dense("residual", residual)
    if out is None:
        return (None,) * len(queries)
    outputs = out if isinstance(out, tuple) else (out,)
    if len(outputs) != len(queries):
        raise ValueError(f"out has {len(outputs)} buffers, wanted one for each of {len(queries)} query segments")
    read = [bias, *queries, *(t for s in segments for t in (s.k, s.v))]
    for i, y in enumerate(outputs):
        shape = (batch, queries[i].shape[2], heads * head_dim)
        if y is not None:
            check_out(y, shape, dtype, device, apart=(*read, *outputs[:i]), onto=(residual,))
    return outputs


def _without_the_empty(
    run: Callable[..., tuple[torch.Tensor, ...]],
    queries: tuple[torch.Tensor, ...],
    segments: tuple[KV, ...],
    outputs: tuple[torch.Tensor | None, ...],
    residual: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, ...]:
    """The result of the segments that are not empty. A query without any key gives 0, or its residual."""
    blocks = options["blocks"]
    listed = blocks is None or blocks.indices.shape[3]
    kept = tuple(s for s in segments if s.k.numel()) if listed else ()
    asking = tuple((x, y) for x, y in zip(queries, outputs, strict=True) if x.numel())
    if not segments[-1].k.numel():
        options = {**options, "causal": None}  # it applies to the last segment's keys only
    made: Iterator[torch.Tensor] = iter(())
    if kept and asking:
        some, places = zip(*asking, strict=True)
        made = iter(run(some, kept, **options, residual=residual, outputs=places))
    results: list[torch.Tensor] = []
    for x, y in zip(queries, outputs, strict=True):
        if kept and x.numel():
            results.append(next(made))
            continue
        batch, heads, tokens, head_dim = x.shape
        nothing = segments[0].v.new_zeros(batch, tokens, heads * head_dim)
        results.append(write_result(nothing if residual is None else (nothing + residual).to(nothing.dtype), y))
    return tuple(results)
