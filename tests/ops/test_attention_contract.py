"""The contract of `attention`: every pattern against one dense float64 softmax, then properties of attention itself."""

import dataclasses
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from kinema.ops import attention
from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import Rope

OP = attention.OP
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Segment:
    """Keys: how many slots, how many of them are real in each sample (None: all), and whether they rotate on read."""

    slots: int
    lengths: tuple[int, ...] | None = None
    rope: str | None = None


@dataclass(frozen=True)
class Case:
    """size: B, N, D. bias: which of its axes have length 1. tiles: q_block, k_block of a block list."""

    size: tuple[int, int, int] = (2, 3, 16)
    queries: tuple[int, ...] = (11,)
    keys: tuple[Segment, ...] = (Segment(19),)
    scale: float | None = None
    bias: str | None = None
    masked: bool = False
    causal: BlockCausal | None = None
    tiles: tuple[int, int] | None = None
    shared_tiles: bool = False
    residual: str = "none"
    layout: str = "heads_first"
    out: bool = False
    loud: float = 1.0
    dtype: torch.dtype = FP32


def keys(*slots):
    return tuple(Segment(n) for n in slots)


CACHE = Segment(14, (5, 14), rope="per_sample")

CASES = {
    **{
        f"{b}x{n}x{q}x{k}x{d}": Case((b, n, d), (q,), keys(k))
        for b, n, q, k, d in (
            (1, 1, 1, 1, 1),
            (3, 2, 7, 13, 10),
            (2, 1, 33, 65, 34),
            (1, 2, 130, 257, 64),
            (1, 1, 5, 700, 128),
        )
    },
    **{f"{d}": Case((2, 2, 32), (9,), keys(33), dtype=d) for d in (BF16, FP16, FP64)},
    **{f"lengths_{d}": Case((2, 2, 32), (9,), (Segment(33, (33, 17)),), dtype=d) for d in (BF16, FP16)},
    # segments
    "video_text": Case(queries=(12, 5), keys=keys(12, 5)),
    "text_video": Case(queries=(5, 12), keys=keys(5, 12)),
    "video_text_lengths": Case(queries=(12, 5), keys=(Segment(12), Segment(5, (3, 1)))),
    "text_video_lengths": Case(queries=(5, 12), keys=(Segment(5, (0, 4)), Segment(12))),
    "cache_video_text": Case(queries=(12, 5), keys=(CACHE, Segment(12), Segment(5, (5, 2)))),
    "cache_and_own": Case(keys=(CACHE, Segment(11))),
    "one_query_three_segments": Case(queries=(1,), keys=keys(3, 1, 7)),
    "joint_buffers": Case(queries=(12, 5), keys=(Segment(12), Segment(5, (3, 5))), out=True),
    "joint_bf16": Case(queries=(5, 12), keys=(Segment(5, (3, 1)), Segment(12)), dtype=BF16),
    # lengths
    "lengths_full_and_one": Case(keys=(Segment(19, (19, 1)),)),
    "lengths_odd_and_none": Case(keys=(Segment(19, (7, 0)),)),
    "lengths_none_at_all": Case(keys=(Segment(19, (0, 0)), Segment(4, (0, 3)))),
    "lengths_around_a_tile": Case((4, 1, 16), (3,), (Segment(130, (63, 64, 65, 129)),)),
    # bias
    **{f"bias_shared_{s or 'nothing'}": Case(bias=s) for s in ("", "b", "n", "q", "bn", "bq", "nq", "bnq")},
    **{f"bias_masked_{s or 'nothing'}": Case(bias=s, masked=True) for s in ("", "bn", "bnq")},
    "bias_and_lengths": Case(bias="bn", masked=True, keys=(Segment(7), Segment(12, (0, 5)))),
    "bias_behind_free_slots": Case(bias="n", keys=(Segment(7, (3, 7)), Segment(12))),
    "bias_of_one_row_and_lengths": Case(bias="bnq", keys=(Segment(19, (8, 19)),)),
    "bias_of_joint_queries": Case(bias="b", queries=(4, 7), keys=keys(4, 7)),
    "bias_and_no_scale": Case(bias="b", scale=1.0),
    "bias_bf16": Case(bias="b", scale=1.0, dtype=BF16),
    # scale and range
    "scale": Case(scale=0.7),
    "scale_negative": Case(scale=-0.3, keys=(Segment(19, (19, 18)),)),
    "scale_nothing": Case(scale=0.0, keys=(Segment(19, (19, 7)),)),
    "loud_logits": Case(loud=30.0),
    "loud_logits_fp16": Case(loud=12.0, dtype=FP16),
    # causal
    "causal": Case(queries=(19,), causal=BlockCausal(1)),
    "causal_blocks": Case(queries=(19,), causal=BlockCausal(4)),
    "causal_one_block": Case(queries=(19,), causal=BlockCausal(64)),
    "causal_offset": Case(queries=(8,), causal=BlockCausal(4, offset=8)),
    "causal_offset_inside_a_block": Case(queries=(7,), causal=BlockCausal(5, offset=3)),
    "causal_after_a_cache": Case(queries=(8,), keys=(CACHE, Segment(16)), causal=BlockCausal(4, offset=4)),
    "causal_lengths": Case(queries=(12,), keys=(Segment(12, (12, 3)),), causal=BlockCausal(3)),
    "causal_from_before_the_keys": Case(queries=(19,), causal=BlockCausal(4, offset=-6), residual="given"),
    "causal_after_two": Case(
        queries=(6,), keys=(Segment(4), CACHE, Segment(6)), causal=BlockCausal(3), residual="given"
    ),
    # rotation on read
    "rotated_cache": Case(keys=(Segment(19, rope="shared"),)),
    "rotated_cache_per_sample": Case(keys=(Segment(19, rope="per_sample"),)),
    "rotated_cache_half_split": Case(keys=(Segment(19, (9, 19), rope="half_split"),)),
    "rotated_cache_range": Case(keys=(Segment(19, rope="range"), Segment(3))),
    "rotated_cache_bf16": Case(keys=(CACHE, Segment(11)), dtype=BF16),
    # block lists
    "tiles": Case(queries=(22,), keys=keys(37), tiles=(4, 8)),
    "tiles_shared": Case(queries=(22,), keys=keys(37), tiles=(4, 8), shared_tiles=True),
    "tiles_large": Case((1, 2, 16), (130,), keys(200), tiles=(64, 32)),
    "tiles_over_segments": Case(queries=(9,), keys=(Segment(5), Segment(17), Segment(4, (2, 4))), tiles=(3, 6)),
    "tiles_behind_free_slots": Case(queries=(9,), keys=(Segment(9, (4, 9)), Segment(12)), tiles=(3, 4)),
    "tiles_and_bias": Case(queries=(9,), keys=keys(20), tiles=(4, 4), bias="bn"),
    "tiles_and_causal": Case(queries=(20,), keys=keys(20), tiles=(4, 4), causal=BlockCausal(5)),
    # residual, strides and buffers
    "residual": Case(residual="given"),
    "residual_in_place": Case(residual="aliased"),
    "residual_of_blind_queries": Case(residual="given", keys=(Segment(6, (0, 2)),)),
    "residual_bf16": Case(residual="given", dtype=BF16),
    "own_buffer": Case(out=True),
    "heads_inside_tokens": Case(layout="tokens_first", queries=(11, 3)),
    "out_of_a_fused_projection": Case(layout="fused"),
    "fused_lengths": Case(layout="fused", keys=(Segment(6, (4, 6)), Segment(9, (9, 1)))),
}


def turned(k, positions, dims, interleaved, start):
    """Keys rotated pair by pair as complex numbers. k: [N, R, D]; positions: [rotating, A], float64."""
    rates = torch.cat([10000.0 ** (-torch.arange(0, d, 2, dtype=FP64, device=k.device) / d) for d in dims])
    axes = torch.repeat_interleave(torch.arange(len(dims)), torch.tensor(dims) // 2).to(k.device)
    angle = positions[:, axes] * rates
    part = k[:, start : start + len(positions)]
    half = k.shape[-1] // 2
    first, second = (part[..., 0::2], part[..., 1::2]) if interleaved else (part[..., :half], part[..., half:])
    z = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    out, section = k.clone(), torch.empty_like(part)
    if interleaved:
        section[..., 0::2], section[..., 1::2] = z.real, z.imag
    else:
        section[..., :half], section[..., half:] = z.real, z.imag
    out[:, start : start + len(positions)] = section
    return out


def visible_keys(case, tiles):
    """Which keys each query may see, bool [B, N, Sq, ΣR], by the letter of the contract."""
    batch, heads, _ = case.size
    queries, total = sum(case.queries), sum(s.slots for s in case.keys)
    sees = torch.ones(batch, heads, queries, total, dtype=torch.bool)
    first = 0
    for segment in case.keys:
        for b, length in enumerate(segment.lengths or ()):
            sees[b, :, :, first + length : first + segment.slots] = False
        first += segment.slots
    if case.causal is not None:
        before = total - case.keys[-1].slots
        for i in range(queries):
            for j in range(case.keys[-1].slots):
                if j // case.causal.block > (i + case.causal.offset) // case.causal.block:
                    sees[:, :, i, before + j] = False
    if tiles is not None:
        q_block, k_block = case.tiles
        listed = torch.zeros_like(sees)
        for b in range(batch):
            for n in range(heads):
                for t, names in enumerate(tiles[b][n]):
                    for name in names:
                        row, column = t * q_block, name * k_block
                        listed[b, n, row : row + q_block, column : column + k_block] = True
        sees &= listed
    return sees


def softmax_average(q, k, v, scale, bias, sees):
    """One sample's output [N, Sq, D], float64, and two sizes [2, …] that its error comes from.

    Both are weights·|v|, since weights are rounded to v's dtype. An error of the logits, of the order of
    Σ|q||k| in fp32, shifts the weights: it multiplies the first. Plain PyTorch rounds the bias to q's dtype.
    """
    logits = torch.einsum("nid,njd->nij", q, k) * scale
    size = torch.einsum("nid,njd->nij", q.abs(), k.abs()) * abs(scale)
    of_bias = torch.zeros_like(size)
    if bias is not None:
        logits = logits + bias
        of_bias = of_bias + torch.where(bias.isinf(), 0.0, bias.abs())
    logits = torch.where(sees, logits, -INF)
    top = logits.amax(-1, keepdim=True)
    weights = torch.exp(logits - torch.where(top.isinf(), 0.0, top))
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total > 0, weights / total, 0.0)
    average = torch.einsum("nij,njd->nid", weights, v)
    spread = torch.einsum("nij,njd->nid", weights, v.abs())
    shifts = [1.0 + torch.where(sees, t, 0.0).amax(-1, keepdim=True) for t in (size + of_bias, of_bias)]
    return average, torch.stack([spread * shift for shift in shifts])


def strided(draw, x, layout):
    """[B, N, S, D] with the same values at other strides."""
    if layout == "tokens_first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "fused":
        batch, heads, tokens, head_dim = x.shape
        qkv = draw.normal(batch, tokens, 3 * heads * head_dim, dtype=x.dtype)
        view = qkv.chunk(3, dim=-1)[2].unflatten(-1, (heads, head_dim)).transpose(1, 2)
        view.copy_(x)
        return view
    return x


def rotation(draw, segment, size):
    """The Rope of a segment, and each sample's positions, interleaving and start for the truth."""
    batch, _, head_dim = size
    dims = (head_dim - 4, 2, 2)
    start, count = (3, segment.slots - 5) if segment.rope == "range" else (0, segment.slots)
    shape = (batch, count, 3) if segment.rope in ("per_sample", "half_split") else (count, 3)
    positions = draw.uniform(*shape, low=0.0, high=30.0, dtype=FP64).round()
    interleaved = segment.rope != "half_split"
    rope = Rope.from_positions(positions, dims, interleaved=interleaved, start=start)
    return rope, [(positions[b] if positions.ndim == 3 else positions, dims, interleaved, start) for b in range(batch)]


def build_segment(draw, segment, case):
    """The KV that the op reads, free slots poisoned, and each sample's float64 keys and values, free slots 0."""
    batch, heads, head_dim = case.size
    k = draw.normal(batch, heads, segment.slots, head_dim, std=case.loud**0.5, dtype=case.dtype)
    v = draw.normal(batch, heads, segment.slots, head_dim, mean=0.5, dtype=case.dtype)
    rope, turns = rotation(draw, segment, case.size) if segment.rope is not None else (None, None)
    truth = []
    for b in range(batch):
        real_k, real_v = k[b].double(), v[b].double()
        if turns is not None:
            real_k = turned(real_k, *turns[b])
        truth.append((real_k, real_v))
    lengths = None
    if segment.lengths is not None:
        lengths = torch.tensor(segment.lengths, device=k.device)
        for b, length in enumerate(segment.lengths):
            k[b, :, length:], v[b, :, length:] = NAN, NAN
            truth[b][0][:, length:], truth[b][1][:, length:] = 0.0, 0.0
    return KV(strided(draw, k, case.layout), strided(draw, v, case.layout), lengths, rope), truth


def build_tiles(draw, case):
    """A random list of tiles, in random order, whose unused slots hold nonsense; and the same as Python lists."""
    q_tiles = -(-sum(case.queries) // case.tiles[0])
    k_tiles = -(-sum(s.slots for s in case.keys) // case.tiles[1])
    batch, heads = (1, 1) if case.shared_tiles else case.size[:2]
    slots = k_tiles + 2
    indices = torch.full((batch, heads, q_tiles, slots), 10**6, dtype=torch.int32)
    indices[..., -1] = -1
    counts = torch.zeros(batch, heads, q_tiles, dtype=torch.int32)
    names = [[[] for _ in range(heads)] for _ in range(batch)]
    for b in range(batch):
        for n in range(heads):
            for t in range(q_tiles):
                # tile 0 of the queries sees nothing in the first head, the others one tile to all
                used = 0 if (t, n) == (0, 0) else 1 + int(draw.permutation(k_tiles)[0])
                order = draw.permutation(k_tiles)[:used].tolist()
                indices[b, n, t, :used] = torch.tensor(order, dtype=torch.int32)
                counts[b, n, t] = used
                names[b][n].append(order)
    full = [[names[b % batch][n % heads] for n in range(case.size[1])] for b in range(case.size[0])]
    device = draw.device
    return BlockList(*case.tiles, indices.to(device), counts.to(device)), full


@dataclass
class Arranged:
    """What a case calls an op with; and by sample, in float64: queries, keys, values, bias, and which keys are seen."""

    q: list
    segments: tuple
    options: dict
    samples: list
    scale: float


def arrange(impl, case: Case) -> Arranged:
    batch, heads, head_dim = case.size
    draw = impl.draw(seed=sum(case.size) + sum(case.queries))
    q = [draw.normal(batch, heads, s, head_dim, std=case.loud**0.5, dtype=case.dtype) for s in case.queries]
    q = [strided(draw, part, case.layout) for part in q]
    segments, parts = zip(*(build_segment(draw, segment, case) for segment in case.keys), strict=True)
    total_q, total_k = sum(case.queries), sum(s.slots for s in case.keys)

    bias = None
    if case.bias is not None:
        full = {"b": batch, "n": heads, "q": total_q}
        shape = [1 if axis in case.bias else full[axis] for axis in "bnq"]
        bias = draw.normal(*shape, total_k, std=1.5, dtype=FP64 if case.dtype == FP64 else FP32)
        if case.masked:
            bias = torch.where(draw.uniform(*bias.shape, low=0.0, high=1.0) < 0.4, -INF, bias)
            bias[0, 0, 0] = -INF  # a query that sees nothing
    blocks, names = build_tiles(draw, case) if case.tiles is not None else (None, None)
    channels = heads * head_dim
    residual = draw.normal(batch, total_q, channels, dtype=case.dtype) if case.residual != "none" else None
    sees = visible_keys(case, names).to(impl.device)
    for b in range(batch if blocks is not None else 0):
        poison_unlisted(sees[b], segments, b)

    samples = []
    for b in range(batch):
        query = torch.cat([part[b].double() for part in q], dim=1)
        key, value = (torch.cat([segment[b][i] for segment in parts], dim=1) for i in (0, 1))
        row = bias[min(b, bias.shape[0] - 1)].double() if bias is not None else None
        samples.append((query, key, value, row, sees[b]))
    options = {"scale": case.scale, "bias": bias, "causal": case.causal, "blocks": blocks, "residual": residual}
    return Arranged(q, segments, options, samples, head_dim**-0.5 if case.scale is None else case.scale)


def check_attention(impl, case: Case):
    impl.flowing(case.dtype)
    made = arrange(impl, case)
    q, segments, residual = made.q, made.segments, made.options["residual"]
    batch, channels = case.size[0], case.size[1] * case.size[2]
    results = [softmax_average(query, k, v, made.scale, row, sees) for query, k, v, row, sees in made.samples]
    # [B, (2,) N, S, D] → [B, (2,) S, N·D]
    truth, size = (torch.stack(t).transpose(-3, -2).flatten(-2) for t in zip(*results, strict=True))
    size = size.transpose(0, 1)
    if residual is not None:
        truth, size = truth + residual.double(), size + residual.double().abs()

    def call(op):
        held = residual.clone() if case.residual == "aliased" else residual
        out = None
        if case.residual == "aliased":
            out = held
        elif case.out:
            out = tuple(impl.draw().poison(batch, s, channels, dtype=case.dtype) for s in case.queries)
            out = out[0] if len(out) == 1 else out
        got = op.attention(
            q[0] if len(q) == 1 else tuple(q),
            segments[0] if len(segments) == 1 else tuple(segments),
            **{**made.options, "residual": held},
            out=out,
        )
        impl.expect(isinstance(got, tuple) and len(got) == len(q), "wanted one result per query segment")
        for part, buffer in zip(got, out if isinstance(out, tuple) else (out,) * len(got), strict=True):
            impl.expect(part.is_contiguous(), f"strides {part.stride()} of {tuple(part.shape)} are not contiguous")
            impl.expect(buffer is None or part.data_ptr() == buffer.data_ptr(), "did not write into out")
        return torch.cat(got, dim=1)

    inputs = [
        *q,
        *(t for s in segments for t in (s.k, s.v)),
        *(t for t in (made.options["bias"], residual) if t is not None),
    ]
    impl.judge(call, truth, size[0], case.dtype, rounded=size[1], unchanged=inputs)


def poison_unlisted(sees, segments, b):
    """What no query of a head sees is not read. sees: [N, Sq, ΣR] of sample b."""
    first = 0
    for segment in segments:
        slots = segment.k.shape[2]
        unread = ~sees.any(1)[:, first : first + slots]
        segment.k[b][unread], segment.v[b][unread] = NAN, NAN
        first += slots


@pytest.mark.parametrize("name", CASES)
def test_attention(impl, name):
    check_attention(impl, CASES[name])


# ---- planted mistakes


def wrapped(impl, change=None, after=None):
    def run(q, kv, **options):
        queries = q if isinstance(q, tuple) else (q,)
        segments = kv if isinstance(kv, tuple) else (kv,)
        if change is not None:
            queries, segments, options = change(queries, segments, dict(options))
        got = impl.functions.attention(
            queries[0] if len(queries) == 1 else queries, segments[0] if len(segments) == 1 else segments, **options
        )
        return got if after is None else after(got, queries, segments, options)

    return {"attention": run}


def option(name, value):
    def change(queries, segments, options):
        if options.get(name) is not None:
            options[name] = value(options[name])
        return queries, segments, options

    return change


def every_segment(value):
    return lambda queries, segments, options: (queries, tuple(value(s) for s in segments), options)


def scale_by_half_the_dimension(queries, segments, options):
    if options["scale"] is None:
        options["scale"] = (queries[0].shape[-1] / 2 + 1) ** -0.5
    return queries, segments, options


def longer(segment):
    """One key too many, with a value in it."""
    if segment.lengths is None:
        return segment
    k, v = segment.k.nan_to_num(0.1), segment.v.nan_to_num(0.1)
    return replace(segment, k=k, v=v, lengths=(segment.lengths + 1).clamp(max=k.shape[2]))


def shorter(segment):
    if segment.lengths is None:
        return segment
    return replace(segment, lengths=(segment.lengths - 1).clamp(min=0))


def of_the_first_sample(segment):
    return segment if segment.lengths is None else longer_to(segment, segment.lengths[:1].expand_as(segment.lengths))


def longer_to(segment, lengths):
    return replace(segment, k=segment.k.nan_to_num(0.1), v=segment.v.nan_to_num(0.1), lengths=lengths)


def unrotated(segment):
    return replace(segment, rope=None)


def rotated_values_too(segment):
    return segment if segment.rope is None else replace(segment, v=segment.rope.rotate(segment.v))


def cache_is_causal_too(queries, segments, options):
    """The block rule counted over all segments."""
    causal = options.get("causal")
    if causal is not None and len(segments) > 1 and all(s.lengths is None and s.rope is None for s in segments[:-1]):
        segments = (KV(*(torch.cat([getattr(s, f) for s in segments], dim=2) for f in "kv")),)
    elif causal is not None and len(segments) > 1:
        options["causal"] = replace(causal, offset=0)
    return queries, segments, options


def swapped_results(got, queries, segments, options):
    joint = torch.cat(got, dim=1)
    parts = joint.split([part.shape[1] for part in got[::-1]], dim=1)
    return tuple(part.contiguous() for part in parts[::-1]) if options.get("out") is None else got


def blind_queries_average(got, queries, segments, options):
    """A query that sees nothing sees everything."""
    if len(got) > 1 or options.get("residual") is not None or options.get("out") is not None:
        return got
    blind = (got[0] == 0).all(-1, keepdim=True)
    mean = segments[0].v.nan_to_num(0.1).mean(2).flatten(1).unsqueeze(1)
    return (torch.where(blind, mean, got[0]),)


def without_maximum(impl):
    """exp of the bare logits."""

    def run(q, kv, *, scale=None, **options):
        if isinstance(q, tuple) or isinstance(kv, tuple) or kv.lengths is not None or kv.rope is not None:
            return impl.functions.attention(q, kv, scale=scale, **options)
        if any(value is not None for value in options.values()):
            return impl.functions.attention(q, kv, scale=scale, **options)
        weights = (q @ kv.k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)).float().exp()
        y = (weights / weights.sum(-1, keepdim=True)).to(q.dtype) @ kv.v
        return (y.transpose(1, 2).flatten(2),)

    return {"attention": run}


def result_cut(impl):
    def run(q, kv, **options):
        if isinstance(q, tuple) or isinstance(kv, tuple) or q.dtype != BF16:
            return impl.functions.attention(q, kv, **options)
        kv = replace(kv, k=kv.k.float(), v=kv.v.float())
        return tuple(impl.cut_to_bf16(y) for y in impl.functions.attention(q.float(), kv, **options))

    return {"attention": run}


def last_query_unwritten(got, queries, segments, options):
    if options.get("out") is None:
        got[-1][:, -1] = NAN
    return got


def one_more_tile(blocks):
    used = (blocks.counts + 1).clamp(max=blocks.indices.shape[-1])
    return replace(blocks, indices=blocks.indices.clamp(0, 1), counts=used)


def first_tiles(blocks):
    """As many tiles as are listed, from the first on."""
    count = torch.arange(blocks.indices.shape[-1], device=blocks.indices.device)
    return replace(blocks, indices=count.expand_as(blocks.indices))


def blocks_by_one_token(causal):
    return replace(causal, block=1)


MISTAKES = {
    "scale": lambda impl: wrapped(impl, scale_by_half_the_dimension),
    "scale_ignored": lambda impl: wrapped(impl, option("scale", lambda s: None)),
    "one_key_too_many": lambda impl: wrapped(impl, every_segment(longer)),
    "one_key_too_few": lambda impl: wrapped(impl, every_segment(shorter)),
    "lengths_of_the_first_sample": lambda impl: wrapped(impl, every_segment(of_the_first_sample)),
    "cache_not_rotated": lambda impl: wrapped(impl, every_segment(unrotated)),
    "values_rotated": lambda impl: wrapped(impl, every_segment(rotated_values_too)),
    "bias_of_the_next_head": lambda impl: wrapped(impl, option("bias", lambda b: b.roll(1, 1))),
    "bias_of_the_first_sample": lambda impl: wrapped(impl, option("bias", lambda b: b[:1])),
    "bias_clamped": lambda impl: wrapped(impl, option("bias", lambda b: b.clamp(min=-5.0))),
    "causal_by_token": lambda impl: wrapped(impl, option("causal", blocks_by_one_token)),
    "causal_one_block_more": lambda impl: wrapped(
        impl, option("causal", lambda c: replace(c, offset=c.offset + c.block))
    ),
    "offset_ignored": lambda impl: wrapped(impl, option("causal", lambda c: replace(c, offset=0))),
    "cache_is_causal": lambda impl: wrapped(impl, cache_is_causal_too),
    "first_tiles_for_listed": lambda impl: wrapped(impl, option("blocks", first_tiles)),
    "one_more_tile": lambda impl: wrapped(impl, option("blocks", one_more_tile)),
    "keys_swapped": lambda impl: wrapped(impl, lambda q, kv, o: (q, kv[::-1], o)),
    "queries_swapped": lambda impl: wrapped(impl, after=swapped_results),
    "residual_dropped": lambda impl: wrapped(impl, option("residual", torch.zeros_like)),
    "blind_queries_average": lambda impl: wrapped(impl, after=blind_queries_average),
    "no_maximum": without_maximum,
    "result_cut": result_cut,
    "last_query_unwritten": lambda impl: wrapped(impl, after=last_query_unwritten),
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if impl.backend != "reference":
        pytest.skip("the mistakes are made around an implementation: the reference, the fastest, shows that they show")
    assert impl.catches(check_attention, CASES, **MISTAKES[mistake](impl))


# ---- properties


def random_qkv(impl, batch=2, heads=3, queries=9, slots=21, head_dim=16, dtype=FP32):
    draw = impl.draw(3)
    q = draw.normal(batch, heads, queries, head_dim, std=1.5, dtype=dtype)
    k, v = (draw.normal(batch, heads, slots, head_dim, std=1.5, dtype=dtype) for _ in range(2))
    return draw, q, k, v


def close(a, b, ulps=16.0):
    return float((a.double() - b.double()).abs().max()) <= ulps * torch.finfo(a.dtype).eps * float(b.abs().max())


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_weights_sum_to_one(impl, dtype):
    """All-ones values give ones: a row sum of other weights than those that multiply the values would not."""
    impl.flowing(dtype)
    _, q, k, v = random_qkv(impl, dtype=dtype)
    lengths = torch.tensor([13, 20], device=impl.device)
    (y,) = impl.functions.attention(2.0 * q, KV(k, torch.ones_like(v), lengths))
    assert float((y.double() - 1.0).abs().max()) <= 4 * torch.finfo(dtype).eps


def test_the_order_of_keys_does_not_matter(impl):
    draw, q, k, v = random_qkv(impl)
    bias = draw.normal(1, 3, 9, 21)
    order = draw.permutation(21)
    (straight,) = impl.functions.attention(q, KV(k, v), bias=bias)
    (shuffled,) = impl.functions.attention(q, KV(k[:, :, order], v[:, :, order]), bias=bias[..., order])
    assert close(shuffled, straight)


def test_a_constant_added_to_the_logits_changes_nothing(impl):
    draw, q, k, v = random_qkv(impl)
    bias = draw.normal(1, 3, 9, 21)
    (straight,) = impl.functions.attention(q, KV(k, v), bias=bias)
    (raised,) = impl.functions.attention(q, KV(k, v), bias=bias + draw.normal(2, 3, 9, 1, std=8.0))
    assert close(raised, straight, ulps=64)


def test_requests_together_equal_requests_alone(impl):
    """Rows of a batch do not touch each other, whatever their lengths."""
    _, q, k, v = random_qkv(impl, batch=3)
    lengths = torch.tensor([21, 4, 0], device=impl.device)
    (together,) = impl.functions.attention(q, KV(k, v, lengths))
    for b, length in enumerate(lengths.tolist()):
        row = slice(b, b + 1)
        (alone,) = (
            impl.functions.attention(q[row], KV(k[row, :, :length], v[row, :, :length]))
            if length
            else (torch.zeros_like(together[row]),)
        )
        assert close(together[row], alone) if length else bool((together[row] == 0).all())


def test_heads_do_not_touch_each_other(impl):
    """A head's neighbour is next to its channels in memory, and may hold anything."""
    _, *qkv = random_qkv(impl, head_dim=40)
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in qkv)
    (clean,) = impl.functions.attention(q, KV(k, v))
    for t in (q, k, v):
        t[:, [0, 2]] = NAN
    (beside,) = impl.functions.attention(q, KV(k, v))
    middle = slice(40, 80)
    assert close(beside[..., middle], clean[..., middle]) and bool(beside[..., :40].isnan().all())


def test_segments_are_one_sequence(impl):
    """Where a sequence of queries or keys is cut does not matter."""
    _, q, k, v = random_qkv(impl)
    (whole,) = impl.functions.attention(q, KV(k, v))
    for cut_q, cuts in ((1, (4,)), (6, (1, 20)), (8, (10, 11))):
        bounds = [0, *cuts, 21]
        segments = tuple(KV(k[:, :, a:b], v[:, :, a:b]) for a, b in pairwise(bounds))
        parts = impl.functions.attention((q[:, :, :cut_q], q[:, :, cut_q:]), segments)
        assert [part.shape[1] for part in parts] == [cut_q, 9 - cut_q]
        assert close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("interleaved", [True, False])
def test_keys_rotated_on_read_are_keys_rotated_before(impl, interleaved):
    """And both depend on distances alone, so that a cache may count positions from its own window."""
    _, q, k, v = random_qkv(impl)
    at_q = torch.arange(9, device=impl.device)[:, None] + 60
    at_k = torch.arange(21, device=impl.device)[:, None] + 40
    ropes = [Rope.from_positions(p, (16,), interleaved=interleaved) for p in (at_q, at_k)]
    (before,) = impl.functions.attention(ropes[0].rotate(q), KV(ropes[1].rotate(k), v))
    (on_read,) = impl.functions.attention(ropes[0].rotate(q), KV(k, v, rope=ropes[1]))
    assert close(on_read, before)
    ropes = [Rope.from_positions(p - 40, (16,), interleaved=interleaved) for p in (at_q, at_k)]
    (relative,) = impl.functions.attention(ropes[0].rotate(q), KV(k, v, rope=ropes[1]))
    assert close(relative, before, ulps=64)
    (unrotated_keys,) = impl.functions.attention(ropes[0].rotate(q), KV(k, v))
    assert not close(unrotated_keys, before, ulps=1e4)


def test_slots_of_a_ring_lie_in_any_order(impl):
    """A cache's slots carry their positions with them."""
    draw, q, k, v = random_qkv(impl)
    positions = torch.arange(21, device=impl.device)[:, None]
    slots = draw.permutation(21)
    (straight,) = impl.functions.attention(q, KV(k, v, rope=Rope.from_positions(positions, (16,))))
    ring = KV(k[:, :, slots], v[:, :, slots], rope=Rope.from_positions(positions[slots], (16,)))
    assert close(impl.functions.attention(q, ring)[0], straight)


def test_equal_keys_are_one_key_with_a_larger_logit(impl):
    """n equal keys weigh as one whose logit is larger by log n: how a model folds a prompt's padding."""
    _, q, k, v = random_qkv(impl)
    k[:, :, 10:], v[:, :, 10:] = k[:, :, 10:11], v[:, :, 10:11]
    bias = torch.zeros(1, 1, 1, 11, device=impl.device)
    bias[..., -1] = math.log(11)
    (padded,) = impl.functions.attention(q, KV(k, v))
    (folded,) = impl.functions.attention(q, KV(k[:, :, :11], v[:, :, :11]), bias=bias)
    assert close(folded, padded)


def test_a_window_is_a_block_list(impl):
    """Tiles within a distance of 1 equal a dense mask of the same band."""
    _, q, k, v = random_qkv(impl, queries=21)
    band = [[t for t in (i - 1, i, i + 1) if 0 <= t < 6] for i in range(6)]
    counts = torch.tensor([len(tiles) for tiles in band], dtype=torch.int32)
    indices = torch.tensor([tiles[::-1] + [77] * (3 - len(tiles)) for tiles in band], dtype=torch.int32)
    blocks = BlockList(4, 4, indices[None, None].to(impl.device), counts[None, None].to(impl.device))
    tile = torch.arange(21, device=impl.device) // 4
    mask = torch.where((tile[:, None] - tile[None, :]).abs() <= 1, 0.0, -INF)[None, None]
    (sparse,) = impl.functions.attention(q, KV(k, v), blocks=blocks)
    (dense,) = impl.functions.attention(q, KV(k, v), bias=mask)
    assert close(sparse, dense)


def test_error_does_not_grow_with_the_number_of_keys(impl):
    draw = impl.draw(5)
    q = draw.normal(1, 1, 4, 32)
    errors = {}
    for slots in (64, 4096):
        k, v = draw.normal(1, 1, slots, 32), draw.normal(1, 1, slots, 32)
        everything = torch.ones(1, 4, slots, dtype=torch.bool, device=impl.device)
        truth, size = softmax_average(q[0].double(), k[0].double(), v[0].double(), 32**-0.5, None, everything)
        (y,) = impl.functions.attention(q, KV(k, v))
        errors[slots] = (
            float(((y.double() - truth.transpose(0, 1).flatten(1)).abs() / size[0].transpose(0, 1).flatten(1)).max())
            / torch.finfo(FP32).eps
        )
    assert max(errors.values()) <= 2.0, errors


@pytest.mark.parametrize("wrong", ["causal", "blocks", "residual", "tiles", "out"])
def test_what_does_not_fit_is_refused(impl, wrong):
    draw, q, k, v = random_qkv(impl)
    lists = torch.zeros(1, 1, 3, 1, dtype=torch.int32, device=impl.device)
    joint = (q[:, :, :4], q[:, :, 4:])
    with pytest.raises(ValueError, match=r"single query segment|tiles|shape"):
        if wrong == "causal":
            impl.functions.attention(joint, KV(k, v), causal=BlockCausal(2))
        elif wrong == "blocks":
            impl.functions.attention(joint, KV(k, v), blocks=BlockList(3, 3, lists, lists[..., 0]))
        elif wrong == "residual":
            impl.functions.attention(joint, KV(k, v), residual=draw.normal(2, 9, 48))
        elif wrong == "tiles":
            impl.functions.attention(q, KV(k, v), blocks=BlockList(4, 4, lists[:, :, :2], lists[:, :, :2, 0]))
        else:
            impl.functions.attention(q, KV(k, v), out=draw.poison(2, 9, 47))


def test_gradients_are_finite_where_a_query_sees_nothing(impl):
    """Training drops whole prompts; the reference is what it runs on."""
    if impl.backend != "reference":
        pytest.skip("only the reference is trained through")
    _, q, k, v = random_qkv(impl)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    (y,) = impl.functions.attention(q, KV(k, v, torch.tensor([0, 5], device=impl.device)))
    y.square().sum().backward()
    for leaf in leaves:
        assert bool(leaf.grad.isfinite().all()) and bool((leaf.grad[1] != 0).any())
    assert bool((v.grad[0] == 0).all())


def test_case_fields_are_all_used():
    default = Case()
    for field in dataclasses.fields(Case):
        assert any(getattr(case, field.name) != getattr(default, field.name) for case in CASES.values()), field.name
