"""`attention` in Triton: launch arguments. triton_kernel.py has the kernel, triton_tables.py the tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.ops.attention import FP8_BLOCK, KV, BlockCausal, BlockList
from kinema.ops.attention.check import checked
from kinema.ops.attention.triton_combine import combine_kernel
from kinema.ops.attention.triton_kernel import Bias, Keys, Lists, Parts, Queries, attention_kernel
from kinema.ops.attention.triton_prepare import Prepared, prepare
from kinema.ops.attention.triton_tables import TABLES
from kinema.ops.common import PRECISIONS, QuantKind, Target, output_buffer
from kinema.ops.common.launch import Config, Layout, architecture, is_hip, launch, layout, remembered, select_config
from kinema.ops.common.triton_descriptor import described, descriptor
from kinema.ops.common.triton_device import IMPRECISE_FP8, aligned, describable_layout, processors
from kinema.ops.common.triton_target import fp8_unsupported

# Split-KV for short queries: PROGRAMS per multiprocessor, at least LEAST tiles of keys each, at most MOST parts.
SPLIT = {
    0: Config({"PROGRAMS": 2, "LEAST": 1, "MOST": 3}),
    80: Config({"PROGRAMS": 2, "LEAST": 4, "MOST": 32}),
}
COMBINE = {
    0: Config({"ROWS": 4}),
    80: Config({"ROWS": 8}, warps=4, stages=2),
}
# What distinguishes kinds of calls that may need other tiles: rows of all heads, until there are tiles for every GPU,
# and keys, from where a loop begins to where it is long.
MANY_ROWS, FEW_KEYS, MANY_KEYS = 1 << 18, 512, 1 << 14
# Its tensor cores take the weights from registers. With e4m3 weights that gave wrong results (Triton 3.6 on an H200).
HOPPER = 90
# fp32 products use no tensor cores, and take this many of a head's channels at a time: a thread holds both factors.
FP32_CHUNK = 32
_KINDS = {torch.float32: "_fp32", torch.bfloat16: "", torch.float16: "", torch.float8_e4m3fn: "_fp8"}


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
    _check(queries[0], quantize)
    batch, heads, _, head_dim = queries[0].shape
    dtype, device = queries[0].dtype, queries[0].device
    scale = head_dim**-0.5 if scale is None else scale
    if scale == 0.0:  # the kernel wants a positive one; with 0 all keys weigh the same
        queries, scale = tuple(torch.zeros_like(part) for part in queries), 1.0
    shapes = [(batch, part.shape[2], heads * head_dim) for part in queries]
    results = tuple(output_buffer(o, shape, dtype, device) for o, shape in zip(outputs, shapes, strict=True))
    asked, seen = tuple(part.shape[2] for part in queries), tuple(s.k.shape[2] for s in segments)
    total_q = sum(asked)

    fp8 = quantize == "fp8"
    given = tuple(_keys(s, fp8) for s in segments)
    first = given[0]
    plan = _plan(
        device,
        (batch, heads, head_dim),
        asked,
        seen,
        "" if bias is None else "row" if bias.shape[2] == 1 or bias.stride(2) == 0 else "full",
        causal is not None,
        any(s.lengths is not None for s in segments),
        (blocks.q_block, blocks.k_block, blocks.indices.shape[-1]) if blocks is not None else None,
        scale < 0,
        (first.k.dtype, layout(first.k), layout(first.v), aligned(first.k, first.v)),
    )
    parts = None
    if plan.splits > 1:
        parts = Parts(
            torch.empty(plan.splits, batch, heads, total_q, head_dim, dtype=torch.float32, device=device),
            *(torch.empty(plan.splits, batch, heads, total_q, dtype=torch.float32, device=device) for _ in range(2)),
        )
    bias = bias.expand(batch, heads, total_q, sum(seen)) if bias is not None else None
    residual_strides = residual.stride()[:2] if residual is not None else None
    v_rows = first.v.transpose(2, 3) if fp8 and plan.v_tiles is not None else first.v
    launch(
        attention_kernel,
        plan.grid,
        plan.config,
        queries=tuple(_queries(x, y, fp8) for x, y in zip(queries, results, strict=True)),
        keys=given,
        k_tiles=described(first.k, plan.k_tiles) if plan.k_tiles is not None else None,
        v_tiles=described(v_rows, plan.v_tiles) if plan.v_tiles is not None else None,
        bias=Bias(bias, bias.stride()) if bias is not None else None,
        lists=_lists(blocks, device) if blocks is not None else None,
        causal=(causal.block, causal.offset) if causal is not None else None,
        residual=residual if parts is None else None,
        residual_strides=residual_strides,
        parts=parts,
        scale=abs(scale) / math.log(2.0),
        **plan.arguments,
    )
    if parts is not None:
        before = 0
        combine = select_config("attention/combine", COMBINE, device)
        for y in results:
            count = y.shape[1]
            launch(
                combine_kernel,
                (triton.cdiv(count, combine.blocks["ROWS"]), batch * heads),
                combine,
                parts=parts,
                y=y,
                residual=residual,
                heads=heads,
                queries=total_q,
                before=before,
                count=count,
                splits=plan.splits,
                y_strides=y.stride()[:2],
                residual_strides=residual_strides,
                HEAD_DIM=head_dim,
                BLOCK_D=plan.arguments["BLOCK_D"],
            )
            before += count
    return results


@dataclass(frozen=True)
class _Plan:
    """What calls of one kind share. splits: parts of the keys. k_tiles, v_tiles: descriptors of the first segment."""

    grid: tuple[int, ...]
    config: Config
    splits: int
    k_tiles: TensorDescriptor | None
    v_tiles: TensorDescriptor | None
    arguments: Mapping[str, Any]


@remembered
def _plan(
    device: torch.device,
    sizes: tuple[int, int, int],
    asked: tuple[int, ...],
    seen: tuple[int, ...],
    bias: str,
    causal: bool,
    lengths: bool,
    blocks: tuple[int, int, int] | None,
    negative: bool,
    first: tuple[torch.dtype, Layout, Layout, bool],
) -> _Plan:
    """sizes: B, N, D. asked, seen: tokens of each segment. bias: "", "row" or "full". blocks: tiles of a list and how
    many it has. first: dtype and layouts of the first segment's keys and values, and whether they are aligned."""
    (batch, heads, head_dim), (key_dtype, k, v, is_aligned) = sizes, first
    total_q, total_k, fp8 = sum(asked), sum(seen), key_dtype == torch.float8_e4m3fn
    block_d = max(32 if fp8 else 16, triton.next_power_of_2(head_dim))  # at least what one instruction multiplies
    kind = _KINDS[key_dtype]
    full_bias = bias == "full"
    name = f"attention/{max(64, block_d)}{kind}"
    name += "_lean" if (causal or full_bias) and f"{name}_lean" in TABLES else ""
    shape = (min(batch * heads * total_q, MANY_ROWS), min(max(total_k, FEW_KEYS), MANY_KEYS))
    words = ("bias" if full_bias else "", "causal" if causal else "", "lists" if blocks is not None else "")
    table = select_config(name, TABLES[name], device, *shape, *words)
    longest = max(asked) if blocks is None else blocks[0]
    key_block = blocks[1] if blocks is not None else None
    rows, keys, warps = _tile_sizes(table, longest, full_bias, key_block, least=32 if fp8 else 16)
    steps, whole = 0, True
    if blocks is not None:
        q_block, k_block, listed = blocks
        steps = k_block // keys if len(seen) == 1 and k_block % keys == 0 else 0
        whole = steps > 0 and total_k % k_block == 0 and not causal and not lengths
        tiles = triton.cdiv(total_q, q_block) * triton.cdiv(q_block, rows)
        most_tiles = listed * max(1, steps)
    else:
        tiles = sum(triton.cdiv(count, rows) for count in asked)
        most_tiles = sum(triton.cdiv(count, keys) for count in seen)
    splits = _splits(tiles * batch * heads, most_tiles, device)
    work = tiles * batch * heads * splits
    # a persistent grid distributes its tiles in advance, which balances only if they take equally long
    per_sm = 0 if causal or blocks is not None or bias or lengths else table.blocks["PER_SM"]

    chunk = min(block_d, FP32_CHUNK) if kind == "_fp32" else block_d
    k_tiles = v_tiles = None
    # of the first segment only: Triton 3.6 takes no descriptor from within a tuple, and the others are short
    if table.blocks["TMA"] and whole and chunk == block_d <= 256 and is_aligned:
        k_tiles, v_tiles = _descriptors(key_dtype, k, v, keys, block_d)
    arguments = {
        "batch": batch,
        "heads": heads,
        "tiles": tiles,
        "splits": splits,
        "PERSISTENT": per_sm > 0,
        "JOINT": len(asked) == 2,
        "SEGMENTS": len(seen),
        "STEPS": steps,
        "WHOLE": whole,
        "NEGATIVE": negative,
        "BIAS_IS_ROW": bias == "row",
        "PROMOTE": architecture(device) in IMPRECISE_FP8,
        "WIDEN": architecture(device) == HOPPER,
        "CUDA": not is_hip(),
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "CHUNK": chunk,
    }
    grid = (min(work, per_sm * processors(device)) if per_sm else work,)
    config = Config({"ROWS": rows, "KEYS": keys}, warps, table.stages)
    return _Plan(grid, config, splits, k_tiles, v_tiles, arguments)


def _tile_sizes(
    table: Config, longest: int, full_bias: bool, key_block: int | None, least: int
) -> tuple[int, int, int]:
    """Rows, keys and warps of a tile: the table's, or smaller where those do not fit.

    longest: the most queries that may share a tile. full_bias: a bias for each query, whose tile is held as well.
    key_block: keys of a listed tile. least: the fewest keys that an instruction multiplies.
    """
    rows, keys, warps = table.blocks["ROWS"], table.blocks["KEYS"], table.warps
    if full_bias:
        rows, keys = max(16, rows // 2), max(least, keys // 2)
    fitting = max(16, triton.next_power_of_2(longest))
    if fitting < rows:
        rows, keys = fitting, min(keys, 64)
        warps = warps if key_block is None and rows >= 64 else 4
    if key_block is not None:
        # all of a listed tile's keys are masked alike
        shared = math.gcd(min(keys, 64), key_block)
        keys = shared if shared >= 32 else min(keys, 64)
    return rows, keys, warps


def _splits(work: int, tiles: int, device: torch.device) -> int:
    """Into how many parts the keys are split: enough to fill the GPU, none with too little to do."""
    table = select_config("attention/split", SPLIT, device).blocks
    wanted = table["PROGRAMS"] * processors(device) // max(1, work)
    return max(1, min(wanted, tiles // table["LEAST"], table["MOST"]))


def _queries(q: torch.Tensor, y: torch.Tensor, fp8: bool) -> Queries:
    given = prepare(q, fp8=True) if fp8 else Prepared(q)
    return Queries(given.data, given.scale, given.data.stride()[:3], y, y.stride()[:2], q.shape[2])


def _keys(segment: KV, fp8: bool) -> Keys:
    lengths = segment.lengths
    if lengths is not None:
        lengths = lengths.to(segment.k.device).contiguous()
    k, v = Prepared(segment.k), Prepared(segment.v)
    if fp8 or segment.rope is not None:
        k = prepare(segment.k, rope=segment.rope, lengths=lengths, fp8=fp8, block=FP8_BLOCK)
    if fp8:
        v = prepare(segment.v, lengths=lengths, fp8=True, block=FP8_BLOCK, channels_first=True)
    return Keys(
        k.data, v.data, k.scale, v.scale, lengths, k.data.stride()[:3], v.data.stride(), segment.k.shape[2]
    )  # fmt: skip


def _descriptors(
    dtype: torch.dtype, k: Layout, v: Layout, keys: int, block_d: int
) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """Descriptors of a segment's keys and values, if the copy engine can read them."""
    fp8 = dtype == torch.float8_e4m3fn
    (shape, strides), block = v, [keys, block_d]
    if fp8:  # channels first
        v, block = ((*shape[:2], shape[3], shape[2]), (*strides[:2], strides[3], strides[2])), [block_d, keys]
    if not (describable_layout(*k, dtype.itemsize) and describable_layout(*v, dtype.itemsize)):
        return None, None
    return _describe(*k, [keys, block_d], dtype), _describe(*v, block, dtype)


def _describe(shape: Sequence[int], strides: Sequence[int], block: list[int], dtype: torch.dtype) -> TensorDescriptor:
    # an axis of size 1 may have any stride, and gets one that the hardware accepts
    outer = [stride if size > 1 else 16 for size, stride in zip(shape[:-1], strides[:-1], strict=True)]
    return descriptor(shape, [*outer, 1], [1, 1, *block], dtype)


def _lists(blocks: BlockList, device: torch.device) -> Lists:
    indices, counts = blocks.indices.to(device), blocks.counts.to(device)
    if indices.stride(3) != 1:
        indices = indices.contiguous()
    strides, count_strides = (
        [stride if size > 1 else 0 for size, stride in zip(t.shape[:2], t.stride()[:2], strict=True)] + [t.stride(2)]
        for t in (indices, counts)
    )
    return Lists(indices, counts, tuple(strides), tuple(count_strides), blocks.q_block, blocks.k_block)


def _check(q: torch.Tensor, quantize: QuantKind | None) -> None:
    """Refuse what the kernel cannot do."""
    if quantize == "int8":
        raise ValueError("attention does not quantize to 'int8' here: wanted 'fp8' or None")
    if quantize == "fp8" and (reasons := fp8_unsupported(Target(q.device, PRECISIONS["cuda"]["fp8"]))):
        raise ValueError(f"quantize='fp8' cannot run here: {'; '.join(reasons)}; use quantize=None")
    if q.dtype not in _KINDS or q.shape[3] > 512:
        raise ValueError(f"q is {q.dtype} of head dim {q.shape[3]}, wanted fp32, bf16 or fp16 of at most 512")
