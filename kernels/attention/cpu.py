"""`attention` on the native CPU kernels (csrc/cpu/attention.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import partial

import torch

from kinema.ops.attention import KV, BlockCausal, BlockList, reference
from kinema.ops.attention.check import checked
from kinema.ops.common import QuantKind, output_buffer
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.native import DTYPES, address, check_readable, cpu, multiplies_bf16, rope_table, workspace
from kinema.ops.common.threads import thread_count

_Two, _Three = ctypes.c_int64 * 2, ctypes.c_int64 * 3
_TwoPointers, _ThreePointers = ctypes.c_void_p * 2, ctypes.c_void_p * 3


class AttentionArguments(ctypes.Structure):
    """kinema_attention_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("query_segments", ctypes.c_int64),
        ("key_segments", ctypes.c_int64),
        ("q", _TwoPointers),
        ("q_stride_b", _Two),
        ("q_stride_n", _Two),
        ("q_stride_s", _Two),
        ("q_tokens", _Two),
        ("out", _TwoPointers),
        ("out_stride_b", _Two),
        ("out_stride_s", _Two),
        ("residual", ctypes.c_void_p),
        ("residual_stride_b", ctypes.c_int64),
        ("residual_stride_s", ctypes.c_int64),
        ("k", _ThreePointers),
        ("k_stride_b", _Three),
        ("k_stride_n", _Three),
        ("k_stride_r", _Three),
        ("v", _ThreePointers),
        ("v_stride_b", _Three),
        ("v_stride_n", _Three),
        ("v_stride_r", _Three),
        ("slots", _Three),
        ("lengths", _ThreePointers),
        ("cosines", _ThreePointers),
        ("sines", _ThreePointers),
        ("rope_stride_b", _Three),
        ("rope_start", _Three),
        ("rope_tokens", _Three),
        ("bias", ctypes.c_void_p),
        ("bias_stride_b", ctypes.c_int64),
        ("bias_stride_n", ctypes.c_int64),
        ("bias_stride_s", ctypes.c_int64),
        ("bias_stride_r", ctypes.c_int64),
        ("causal_block", ctypes.c_int64),
        ("causal_offset", ctypes.c_int64),
        ("indices", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("list_stride_b", ctypes.c_int64),
        ("list_stride_n", ctypes.c_int64),
        ("listed", ctypes.c_int64),
        ("query_tile", ctypes.c_int64),
        ("key_tile", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("interleaved", ctypes.c_int32 * 3),
        ("quantize", ctypes.c_int32),
        ("qk_dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


# of AttentionArguments: filled at once, for a fraction of what its arrays cost one by one
_LAYOUT = struct.Struct("=84qf6i4x")
_NEITHER_BIAS_NOR_LISTS = (0,) * 15


def _by_field(segments: Sequence[tuple[int, ...]], most: int) -> list[int]:
    """The fields of segments, each field of all segments at a time, with zeros for those that there could be."""
    padded = [*segments, *[(0,) * len(segments[0])] * (most - len(segments))]
    return [value for field in zip(*padded, strict=True) for value in field]


def _mixes(quantize: QuantKind | None) -> bool:
    return quantize != "fp8" and multiplies_bf16()


@partial(checked, mixes=_mixes)
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
    if quantize == "fp8":  # a CPU has no arithmetic in 8-bit floats: only the reference can compute it
        exact: tuple[torch.Tensor, ...] = unchecked(reference.attention)(
            queries,
            segments,
            scale=scale,
            bias=bias,
            causal=causal,
            blocks=blocks,
            quantize=quantize,
            residual=residual,
            outputs=outputs,
        )
        return exact
    batch, heads, _, head_dim = queries[0].shape
    check_readable("v", segments[0].v)
    results = tuple(
        output_buffer(buffer, (batch, t.shape[2], heads * head_dim), torch.float32, t.device)
        for t, buffer in zip(queries, outputs, strict=True)
    )
    if residual is not None:
        check_readable("residual", residual)
    lengths = [s.lengths.to("cpu", torch.int64).contiguous() if s.lengths is not None else None for s in segments]
    ropes = [rope_table(s.rope) for s in segments]
    asked = [
        (x.data_ptr(), *x.stride()[:3], x.shape[2], y.data_ptr(), *y.stride()[:2])
        for x, y in zip(queries, results, strict=True)
    ]
    seen = [
        (s.k.data_ptr(), *s.k.stride()[:3], s.v.data_ptr(), *s.v.stride()[:3], s.k.shape[2], lengths_at or 0)
        for s, lengths_at in zip(segments, map(address, lengths), strict=True)
    ]
    turned = [(address(cosines) or 0, address(sines) or 0, *rope) for cosines, sines, *rope in ropes]
    arguments = AttentionArguments()
    _LAYOUT.pack_into(
        arguments,
        0,
        batch,
        heads,
        head_dim,
        len(queries),
        len(segments),
        *_by_field(asked, 2),
        *((residual.data_ptr(), *residual.stride()[:2]) if residual is not None else (0, 0, 0)),
        *_by_field(seen, 3),
        *_by_field(turned, 3),
        *_NEITHER_BIAS_NOR_LISTS,
        head_dim**-0.5 if scale is None else scale,
        *_by_field([(s.rope is not None and s.rope.interleaved,) for s in segments], 3),
        quantize == "int8",
        DTYPES[queries[0].dtype],
        thread_count(),
    )
    if bias is not None:
        bias = _give_bias(arguments, bias, sum(t.shape[2] for t in queries), sum(s.k.shape[2] for s in segments))
    if causal is not None:
        arguments.causal_block, arguments.causal_offset = causal.block, causal.offset
    lists = _give_blocks(arguments, blocks) if blocks is not None else None
    native = cpu()
    arguments.workspace = workspace(native.ask("kinema_attention_workspace", arguments))
    native.call("kinema_attention", arguments)
    del bias, lists  # kept alive until here: the call reads their memory
    return results


def _give_bias(arguments: AttentionArguments, bias: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Sets the bias, broadcast by strides of 0; returns what must stay alive until the call."""
    bias = bias.float().expand(arguments.batch, arguments.heads, queries, keys)
    arguments.bias = bias.data_ptr()
    arguments.bias_stride_b, arguments.bias_stride_n, arguments.bias_stride_s, arguments.bias_stride_r = bias.stride()
    return bias


def _give_blocks(arguments: AttentionArguments, blocks: BlockList) -> tuple[torch.Tensor, ...]:
    """Sets the lists of tiles; returns what must stay alive until the call."""
    batch, heads, tiles, most = blocks.indices.shape
    indices = blocks.indices.to("cpu", torch.int32).contiguous()
    counts = blocks.counts.to("cpu", torch.int32).contiguous()
    arguments.indices, arguments.counts = indices.data_ptr(), counts.data_ptr()
    arguments.list_stride_b = heads * tiles if batch > 1 else 0
    arguments.list_stride_n = tiles if heads > 1 else 0
    arguments.listed, arguments.query_tile, arguments.key_tile = most, blocks.q_block, blocks.k_block
    return indices, counts
