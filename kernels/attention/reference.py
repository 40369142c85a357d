"""The truth for `attention`: concatenate the segments, build one mask, call scaled_dot_product_attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import deliver


def attention(
    q: torch.Tensor | tuple[torch.Tensor, ...],
    kv: KV | tuple[KV, ...],
    *,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
    causal: BlockCausal | None = None,
    blocks: BlockList | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
) -> tuple[torch.Tensor, ...]:
    queries = q if isinstance(q, tuple) else (q,)
    segments = kv if isinstance(kv, tuple) else (kv,)
    outputs = out if isinstance(out, tuple) else (out,) * len(queries)
    if len(queries) > 1 and (causal is not None or blocks is not None or residual is not None):
        raise ValueError("causal, blocks and residual are for a single query segment")

    query = _joined(list(queries))
    key = _joined([s.rope.rotate(s.k) if s.rope is not None else s.k for s in segments])
    value = _joined([s.v for s in segments])
    mask = _mask(query, segments, causal, blocks)
    dense = mask
    if mask is not None:
        # a key that no query sees may hold NaN, and 0 · NaN is NaN
        seen = mask.any(2).unsqueeze(-1)
        key, value = torch.where(seen, key, 0.0), torch.where(seen, value, 0.0)
    if bias is not None:
        dense = bias.to(query.dtype)
        dense = dense.masked_fill(~mask, float("-inf")) if mask is not None else dense
    y = F.scaled_dot_product_attention(query, key, value, attn_mask=dense, scale=scale)
    if dense is not None:
        # not every SDPA kernel gives 0 for a query that sees nothing
        blind = ~dense.any(-1) if dense.dtype == torch.bool else dense.isneginf().all(-1)
        y = y.masked_fill(blind.unsqueeze(-1), 0.0)
    y = y.transpose(1, 2).flatten(2)
    if residual is not None:
        y = residual + y
    parts = torch.split(y, [segment.shape[2] for segment in queries], dim=1)
    return tuple(deliver(part.contiguous(), buffer) for part, buffer in zip(parts, outputs, strict=True))


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _mask(
    query: torch.Tensor, segments: tuple[KV, ...], causal: BlockCausal | None, blocks: BlockList | None
) -> torch.Tensor | None:
    """Which keys each query sees, as bool [B or 1, N or 1, Sq or 1, ΣR]; None if it sees all."""
    masks = []
    if any(s.lengths is not None for s in segments):
        masks.append(_real_keys(segments, query.shape[0]))
    if causal is not None:
        masks.append(_block_causal(query.shape[2], segments, causal))
    if blocks is not None:
        masks.append(_block_list(query.shape[2], sum(s.k.shape[2] for s in segments), blocks))
    if not masks:
        return None
    mask = masks[0].to(query.device)
    for other in masks[1:]:
        mask = mask & other.to(query.device)
    return mask


def _real_keys(segments: tuple[KV, ...], batch: int) -> torch.Tensor:
    real = []
    for s in segments:
        slots = torch.arange(s.k.shape[2], device=s.k.device)
        if s.lengths is None:
            real.append(torch.ones(batch, len(slots), dtype=torch.bool, device=s.k.device))
        else:
            real.append(slots < s.lengths.to(s.k.device)[:, None])
    return torch.cat(real, dim=1)[:, None, None, :]


def _block_causal(queries: int, segments: tuple[KV, ...], causal: BlockCausal) -> torch.Tensor:
    cached = sum(s.k.shape[2] for s in segments[:-1])
    i = (torch.arange(queries) + causal.offset) // causal.block
    j = torch.arange(segments[-1].k.shape[2]) // causal.block
    seen = j[None, :] <= i[:, None]
    return torch.cat((torch.ones(queries, cached, dtype=torch.bool), seen), dim=1)[None, None]


def _block_list(queries: int, keys: int, blocks: BlockList) -> torch.Tensor:
    q_tiles = -(-queries // blocks.q_block)
    k_tiles = -(-keys // blocks.k_block)
    batch, heads, listed, _ = blocks.indices.shape
    if listed != q_tiles:
        raise ValueError(f"block list covers {listed} query tiles, {queries} queries make {q_tiles}")
    tiles = torch.zeros(batch, heads, q_tiles, k_tiles, dtype=torch.bool)
    used = torch.arange(blocks.indices.shape[-1]) < blocks.counts.cpu().unsqueeze(-1)
    # unused slots may hold anything: point them at tile 0 and let only the used ones set it
    indices = torch.where(used, blocks.indices.cpu(), 0).long()
    tiles.scatter_reduce_(-1, indices, used, reduce="amax", include_self=True)
    per_query = tiles.repeat_interleave(blocks.q_block, dim=2)[:, :, :queries]
    return per_query.repeat_interleave(blocks.k_block, dim=3)[..., :keys]
