"""The truth for `attention`: concatenate the segments, build one mask, call scaled_dot_product_attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kinema.ops.attention import FP8_BLOCK, FP8_PEAK, INT8_TOP, KV, BlockCausal, BlockList
from kinema.ops.attention.check import checked
from kinema.ops.common import FP8_MAX, QuantKind, upcast, write_result

FP8_TILE = 128  # keys per step of the online softmax in 8 bits


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
    query = _joined(list(queries))
    keys = [s.rope.rotate(s.k) if s.rope is not None else s.k for s in segments]
    values = [s.v for s in segments]
    if quantize == "fp8":
        query = _in_e4m3(upcast(query), 1)
        keys, values = ([_real_in_e4m3(x, s) for x, s in zip(t, segments, strict=True)] for t in (keys, values))
    elif quantize == "int8":
        query = _in_int8(upcast(query))
        keys, values = _smoothed_in_int8([upcast(k) for k in keys], segments), [upcast(v) for v in values]
    key, value = _joined(keys), _joined(values)
    mask = _mask(query, segments, causal, blocks)
    dense = mask
    if mask is not None:
        # a key that no query sees may hold NaN, and 0 · NaN is NaN
        seen = mask.any(2).unsqueeze(-1)
        key, value = torch.where(seen, key, 0.0), torch.where(seen, value, 0.0)
    if bias is not None:
        dense = bias.to(query.dtype)
        dense = dense.masked_fill(~mask, float("-inf")) if mask is not None else dense
    if quantize == "fp8":
        tiles = [size for s in segments for size in _sizes(s.k.shape[2], FP8_TILE)]
        y = _weighted_in_e4m3(query, key, value, dense, scale, tiles).to(queries[0].dtype)
    else:
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=dense, scale=scale).to(queries[0].dtype)
    if dense is not None:
        # not every SDPA kernel gives 0 for a query that sees nothing
        blind = ~dense.any(-1) if dense.dtype == torch.bool else dense.isneginf().all(-1)
        y = y.masked_fill(blind.unsqueeze(-1), 0.0)
    y = y.transpose(1, 2).flatten(2)
    if residual is not None:
        y = residual + y
    parts = torch.split(y, [segment.shape[2] for segment in queries], dim=1)
    return tuple(write_result(part.contiguous(), buffer) for part, buffer in zip(parts, outputs, strict=True))


def _sizes(total: int, block: int) -> list[int]:
    return [min(block, total - first) for first in range(0, total, block)]


def _in_e4m3(x: torch.Tensor, block: int) -> torch.Tensor:
    """x [B, N, S, D] with `block` tokens to a scale, rounded to e4m3 and back. NaN stays, but affects no scale."""
    parts = torch.split(x, _sizes(x.shape[2], block), dim=2) if block > 1 else (x,)
    rounded = []
    for part in parts:
        over = (-1,) if block == 1 else (-2, -1)
        step = part.abs().nan_to_num(0.0).amax(over, keepdim=True).clamp(min=1e-12) / FP8_MAX
        rounded.append(_to_e4m3(part / step) * step)
    return torch.cat(rounded, dim=2)


def _to_e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.float().clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def _real_in_e4m3(x: torch.Tensor, segment: KV) -> torch.Tensor:
    """A segment's keys or values [B, N, R, D], 0 beyond a length."""
    return _in_e4m3(_real(upcast(x), segment), FP8_BLOCK)


def _real(x: torch.Tensor, segment: KV) -> torch.Tensor:
    """x [B, N, R, D] of a segment, 0 beyond a length."""
    if segment.lengths is None:
        return x
    return torch.where(_real_keys((segment,), x.shape[0]).to(x.device).transpose(-1, -2), x, 0.0)


def _in_int8(x: torch.Tensor) -> torch.Tensor:
    """x [B, N, S, D] rounded to integer multiples of each token's step. NaN stays, and infinities become NaN."""
    step = x.abs().nan_to_num(0.0, posinf=float("inf")).amax(-1, keepdim=True).clamp(min=1e-12) / INT8_TOP
    return (x / step).round() * step


def _smoothed_in_int8(keys: list[torch.Tensor], segments: tuple[KV, ...]) -> list[torch.Tensor]:
    """Every segment's keys [B, N, R, D] less the mean of all real ones, rounded."""
    real = _real_keys(segments, keys[0].shape[0])
    total = sum(_finite(_real(k, s)).double().sum(2, keepdim=True) for k, s in zip(keys, segments, strict=True))
    mean = (total / real.sum(-1, keepdim=True).clamp(min=1).to(keys[0].device)).to(keys[0].dtype)
    return [_in_int8(k - mean) for k in keys]


def _finite(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def _weighted_in_e4m3(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    tiles: list[int],
) -> torch.Tensor:
    """Attention whose weights are rounded to e4m3, tile by tile of keys. mask: bool, or added to the logits.

    All in the dtype of `query` [B, N, Sq, D], fp32 or wider.
    """
    logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    row_max = torch.full_like(logits[..., :1], float("-inf"))
    y, row_sum = torch.zeros_like(query[..., :1] * value[..., :1, :]), torch.zeros_like(row_max)
    for part, v in zip(torch.split(logits, tiles, dim=-1), torch.split(value, tiles, dim=2), strict=True):
        new_max = torch.maximum(row_max, part.amax(-1, keepdim=True))
        base = torch.where(new_max.isneginf(), 0.0, new_max)  # nothing was seen so far
        weights = _to_e4m3(FP8_PEAK * torch.exp(part - base))
        alpha = torch.exp(row_max - base)
        y, row_sum = y * alpha + weights @ v, row_sum * alpha + weights.sum(-1, keepdim=True)
        row_max = new_max
    return torch.where(row_sum > 0, y / row_sum, 0.0)


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
        slots = torch.arange(s.k.shape[2], dtype=torch.int64, device=s.k.device)
        if s.lengths is None:
            real.append(torch.ones(batch, len(slots), dtype=torch.bool, device=s.k.device))
        else:
            real.append(slots < s.lengths.to(s.k.device)[:, None])
    return torch.cat(real, dim=1)[:, None, None, :]


def _block_causal(queries: int, segments: tuple[KV, ...], causal: BlockCausal) -> torch.Tensor:
    cached = sum(s.k.shape[2] for s in segments[:-1])
    device = segments[-1].k.device
    i = (torch.arange(queries, dtype=torch.int64, device=device) + causal.offset) // causal.block
    j = torch.arange(segments[-1].k.shape[2], dtype=torch.int64, device=device) // causal.block
    seen = j[None, :] <= i[:, None]
    return torch.cat((torch.ones(queries, cached, dtype=torch.bool, device=device), seen), dim=1)[None, None]


def _block_list(queries: int, keys: int, blocks: BlockList) -> torch.Tensor:
    q_tiles = -(-queries // blocks.q_block)
    k_tiles = -(-keys // blocks.k_block)
    batch, heads, _, most = blocks.indices.shape
    tiles = torch.zeros(batch, heads, q_tiles, k_tiles, dtype=torch.bool, device="cpu")
    used = torch.arange(most, dtype=torch.int64, device="cpu") < blocks.counts.cpu().unsqueeze(-1)
    # unused slots may hold anything: point them at tile 0 and let only the used ones set it
    indices = torch.where(used, blocks.indices.cpu(), 0).long()
    tiles.scatter_reduce_(-1, indices, used, reduce="amax", include_self=True)
    per_query = tiles.repeat_interleave(blocks.q_block, dim=2)[:, :, :queries]
    return per_query.repeat_interleave(blocks.k_block, dim=3)[..., :keys]
