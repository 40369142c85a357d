"""Calls of the C interface that are as they should be, and what is spoiled in them: see misuse.py."""

import ctypes
import dataclasses

import torch

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.attention import cpu as attention
from kinema.ops.common import PRECISIONS, Rope, Target
from kinema.ops.conv3d import cpu as conv3d
from kinema.ops.linear import cpu as linear
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate import cpu as norm_modulate
from kinema.ops.patch_embed import cpu as patch_embed
from kinema.ops.qk_norm_rope import cpu as qk_norm_rope
from kinema.ops.scheduler_step import cpu as scheduler_step
from kinema.ops.unpatchify import cpu as unpatchify

INT32, INT64, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
TARGET = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])
EVIL = 0x10  # an address that nobody may read
HUGE = 2**62


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def lists(batch, heads, tiles, most):
    indices = torch.arange(most, dtype=torch.int32).expand(batch, heads, tiles, most).contiguous()
    return BlockList(4, 5, indices, torch.full((batch, heads, tiles), most, dtype=torch.int32))


def rope(tokens, head_dim):
    return Rope(random(tokens, head_dim // 2), random(tokens, head_dim // 2), start=1)


# calls that are as they should be, with everything that there can be
LEGAL = {
    "linear": lambda: linear.linear(
        random(2, 6, 7),
        linear.pack_linear(random(5, 7), random(5), target=TARGET),
        norm=Norm(1e-6, scale=random(2, 3, 7), shift=random(1, 2, 7), weight=random(7)),
        gate=random(2, 3, 5),
        residual=random(2, 6, 5),
    ),
    "linear_pair": lambda: linear.linear(
        (random(2, 6, 3), random(2, 6, 4)), linear.pack_linear(random(5, 7), target=TARGET)
    ),
    "norm_modulate": lambda: norm_modulate.norm_modulate(random(2, 6, 9), eps=1e-6, scale=random(2, 3, 9)),
    "norm_modulate_i8": lambda: norm_modulate.norm_modulate(random(2, 6, 9), eps=1e-6, quantize="int8"),
    "qk_norm_rope": lambda: qk_norm_rope.qk_norm_rope(random(2, 6, 24), 3, rope=rope(4, 8)),
    "scheduler_step": lambda: scheduler_step.scheduler_step([random(2, 30), random(2, 30)], random(2, 2, 2)),
    "attention": lambda: attention.attention(
        random(2, 3, 9, 8),
        (KV(random(2, 3, 11, 8), random(2, 3, 11, 8), torch.tensor([3, 11]), rope(7, 8)), KV(*random(2, 2, 3, 4, 8))),
        bias=random(2, 3, 9, 15),
        causal=BlockCausal(3),
        blocks=lists(2, 3, 3, 2),
        residual=random(2, 9, 24),
    ),
    "attention_two": lambda: attention.attention(
        (random(2, 3, 9, 8), random(2, 3, 5, 8)), KV(*random(2, 2, 3, 4, 8)), quantize="int8"
    ),
    "patch_embed": lambda: patch_embed.patch_embed(
        random(2, 3, 2, 4, 6),
        patch_embed.pack_patch_embed(random(5, 3, 1, 2, 2), random(5), target=TARGET),
        position=random(12, 5),
    ),
    "unpatchify": lambda: unpatchify.unpatchify(random(2, 12, 12), (2, 2, 3), (1, 2, 2)),
    "conv3d": lambda: conv3d.conv3d(
        random(2, 3, 2, 6, 7),
        conv3d.pack_conv3d(random(5, 3, 3, 3, 3), random(5), target=TARGET),
        norm=random(3),
        cache=random(2, 3, 2, 6, 7),
        residual=random(2, 5, 2, 6, 7),
    ),
    "conv3d_winograd": lambda: conv3d.conv3d(
        random(2, 9, 2, 6, 7), conv3d.pack_conv3d(random(5, 9, 3, 3, 3), target=TARGET)
    ),
}

# (calls, field, value, what comes of it); a value that is a function is of the field's old value
ALL = tuple(LEGAL)
READ_BY_STRIDES = tuple(name for name in ALL if name not in ("scheduler_step", "attention", "attention_two"))
WITH_SCRATCH = tuple(name for name in ALL if name not in ("norm_modulate", "qk_norm_rope", "unpatchify"))
PACKED = ("linear", "linear_pair", "patch_embed", "conv3d", "conv3d_winograd")
CONVOLUTIONS = ("conv3d", "conv3d_winograd")


@dataclasses.dataclass(frozen=True)
class Moved:
    """A pointer elsewhere."""

    by: int

    def __call__(self, pointer):
        return pointer + self.by


@dataclasses.dataclass(frozen=True)
class Entry:
    """Another value where a pointer leads to."""

    kind: type
    index: int
    value: int | None

    def __call__(self, pointer):
        ctypes.cast(pointer, ctypes.POINTER(self.kind))[self.index] = self.value
        return pointer


MISUSES = [
    # threads
    (ALL, "threads", -1, "BAD_SIZE"),
    (ALL, "threads", 10**6, "BAD_SIZE"),
    (ALL, "threads", 0, "OK"),
    # sizes below zero, or larger than anything can be, by themselves or together
    *((ALL, "batch", value, "BAD_SIZE") for value in (-1, -(2**63), HUGE, 2**63 - 1)),
    (("linear", "linear_pair", "norm_modulate", "qk_norm_rope"), "tokens", -1, "BAD_SIZE"),
    (("linear", "linear_pair", "norm_modulate", "qk_norm_rope"), "tokens", HUGE, "BAD_SIZE"),
    (("linear", "linear_pair"), "in_features", 0, "BAD_SIZE"),
    (("linear",), "in_features", 2**31 - 1, "BAD_SIZE"),
    (("linear", "linear_pair"), "out_features", -1, "BAD_SIZE"),
    (("linear",), "x_features", 6, "BAD_SIZE"),
    (("linear_pair",), "x_features", 8, "BAD_SIZE"),
    (("linear_pair",), "x_features", -1, "BAD_SIZE"),
    (("norm_modulate", "norm_modulate_i8"), "channels", -1, "BAD_SIZE"),
    (("qk_norm_rope", "attention"), "heads", -1, "BAD_SIZE"),
    (("qk_norm_rope", "attention"), "heads", 2**31 - 1, "BAD_SIZE"),
    (("qk_norm_rope", "attention"), "head_dim", 7, "BAD_SIZE"),
    *((("qk_norm_rope",), "operands", value, "BAD_SIZE") for value in (0, -1, 2, 6)),  # of three heads
    (("qk_norm_rope",), "rope_start", 3, "BAD_SIZE"),
    (("qk_norm_rope",), "rope_start", -1, "BAD_SIZE"),
    (("qk_norm_rope",), "rope_tokens", 6, "BAD_SIZE"),
    (("qk_norm_rope",), "rope_tokens", -1, "BAD_SIZE"),
    (("scheduler_step",), "elements", -1, "BAD_SIZE"),
    (("scheduler_step",), "elements", 2**44, "BAD_SIZE"),
    (("scheduler_step",), "term_count", -1, "BAD_SIZE"),
    (("scheduler_step",), "out_count", -1, "BAD_SIZE"),
    (("scheduler_step",), "out_count", 2**31, "BAD_SIZE"),
    (("attention",), "query_segments", 0, "BAD_SIZE"),
    (("attention",), "query_segments", 3, "BAD_SIZE"),
    (("attention",), "query_segments", 2, "BAD_OPTION"),  # with a residual, causal blocks and lists
    (("attention",), "key_segments", 0, "BAD_SIZE"),
    (("attention",), "key_segments", 4, "BAD_SIZE"),
    (("attention",), "q_tokens.0", -1, "BAD_SIZE"),
    (("attention_two",), "q_tokens.1", -1, "BAD_SIZE"),
    (("attention", "attention_two"), "slots.0", -1, "BAD_SIZE"),
    (("attention", "attention_two"), "slots.0", HUGE, "BAD_SIZE"),
    (("attention",), "rope_start.0", 5, "BAD_SIZE"),
    (("attention",), "rope_start.0", -1, "BAD_SIZE"),
    (("attention",), "rope_tokens.0", 11, "BAD_SIZE"),
    (("attention_two",), "head_dim", 132561, "BAD_SIZE"),  # more than 32 bits may add up
    (("attention",), "causal_block", -1, "BAD_SIZE"),
    (("attention",), "causal_offset", 2**63 - 1, "BAD_SIZE"),
    (("attention",), "causal_offset", -(2**63), "BAD_SIZE"),
    (("attention",), "query_tile", 0, "BAD_SIZE"),
    (("attention",), "key_tile", 0, "BAD_SIZE"),
    (("attention",), "key_tile", -5, "BAD_SIZE"),
    (("attention",), "listed", -1, "BAD_SIZE"),
    (("patch_embed", *CONVOLUTIONS), "frames", -1, "BAD_SIZE"),
    (("patch_embed",), "width", 5, "BAD_SIZE"),
    (("patch_embed", "unpatchify"), "patch_h", 0, "BAD_SIZE"),
    (("patch_embed", "unpatchify"), "patch_w", -2, "BAD_SIZE"),
    (("patch_embed",), "channels", 0, "BAD_SIZE"),
    (("unpatchify",), "channels", HUGE, "BAD_SIZE"),
    (("unpatchify",), "grid_h", -1, "BAD_SIZE"),
    *((CONVOLUTIONS, field, 0, "BAD_SIZE") for field in ("in_channels", "out_channels", "height", "width")),
    *((CONVOLUTIONS, field, 0, "BAD_SIZE") for field in ("kernel_t", "kernel_w", "stride_t", "stride_h", "upsample")),
    *((CONVOLUTIONS, field, 2**31 - 1, "BAD_SIZE") for field in ("kernel_h", "stride_w", "upsample")),
    (CONVOLUTIONS, "pad_top", -1, "BAD_SIZE"),
    (CONVOLUTIONS, "pad_right", 2**63 - 1, "BAD_SIZE"),
    (CONVOLUTIONS, "stride_t", 3, "BAD_SIZE"),  # of two frames
    (("conv3d_winograd",), "stride_h", 2, "BAD_SIZE"),
    (("conv3d_winograd",), "kernel_w", 1, "BAD_SIZE"),
    # strides
    (READ_BY_STRIDES, "x_stride_b", -1, "BAD_SIZE"),
    (READ_BY_STRIDES, "x_stride_b", HUGE, "BAD_SIZE"),
    (("linear", "linear_pair", "norm_modulate", "patch_embed"), "out_stride_s", 1, "BAD_SIZE"),  # rows on each other
    (("linear", "linear_pair", "norm_modulate", "patch_embed", "qk_norm_rope"), "out_stride_b", 0, "BAD_SIZE"),
    (("linear",), "residual_stride_s", -5, "BAD_SIZE"),
    (("linear",), "gate_stride_g", HUGE, "BAD_SIZE"),
    (("linear_pair",), "x2_stride_s", -1, "BAD_SIZE"),
    (("scheduler_step",), "term_strides", Entry(INT64, 1, -30), "BAD_SIZE"),
    (("scheduler_step",), "out_strides", Entry(INT64, 1, 29), "BAD_SIZE"),
    *((("attention",), f"{name}.0", -1, "BAD_SIZE") for name in ("q_stride_n", "k_stride_r", "v_stride_b")),
    (("attention",), "out_stride_s.0", 23, "BAD_SIZE"),
    (("attention",), "bias_stride_s", HUGE, "BAD_SIZE"),
    (("attention",), "list_stride_n", -1, "BAD_SIZE"),
    (("conv3d",), "cache_stride_w", 0, "BAD_SIZE"),
    # groups of tokens
    (("linear",), "gate_tokens", 0, "BAD_SIZE"),
    (("linear",), "gate_tokens", -1, "BAD_SIZE"),
    (("norm_modulate",), "norm.scale_tokens", 0, "BAD_SIZE"),
    # formats and options
    (("linear", "linear_pair"), "x_dtype", 1, "BAD_DTYPE"),
    (("linear", "linear_pair"), "weight_dtype", 5, "BAD_DTYPE"),
    (("linear_pair",), "x_dtype", 4, "BAD_DTYPE"),  # two sources are fp32
    (("linear_pair",), "quantize", 1, "BAD_DTYPE"),  # of a weight in fp32
    (("norm_modulate", "norm_modulate_i8", "qk_norm_rope"), "out_dtype", 2, "BAD_DTYPE"),
    (("attention", "attention_two"), "qk_dtype", 2, "BAD_DTYPE"),
    (("linear", "linear_pair", *CONVOLUTIONS), "activation", 5, "BAD_OPTION"),
    (("linear_pair",), "quantize", 2, "BAD_DTYPE"),
    (("attention", "attention_two"), "quantize", 2, "BAD_OPTION"),
    (("norm_modulate",), "norm.kind", 3, "BAD_OPTION"),
    (("qk_norm_rope",), "norm", -1, "BAD_OPTION"),
    (("linear", "linear_pair"), "gated", 2, "BAD_OPTION"),
    (("qk_norm_rope",), "across_heads", -1, "BAD_OPTION"),
    (("attention",), "interleaved.0", 2, "BAD_OPTION"),
    (("unpatchify",), "channel_first", 2, "BAD_OPTION"),
    (CONVOLUTIONS, "winograd", 3, "BAD_OPTION"),
    # pointers that are missing
    (tuple(n for n in ALL if not n.startswith(("scheduler", "attention"))), "x", None, "NO_POINTER"),
    (tuple(n for n in ALL if not n.startswith(("scheduler", "attention"))), "out", None, "NO_POINTER"),
    *((("scheduler_step",), name, None, "NO_POINTER") for name in ("terms", "term_strides", "outs", "out_strides")),
    (("scheduler_step",), "coefficients", None, "NO_POINTER"),
    (("scheduler_step",), "terms", Entry(POINTER, 1, None), "NO_POINTER"),
    (("scheduler_step",), "outs", Entry(POINTER, 0, None), "NO_POINTER"),
    (("attention", "attention_two"), "q.0", None, "NO_POINTER"),
    (("attention_two",), "out.1", None, "NO_POINTER"),
    (("attention",), "k.1", None, "NO_POINTER"),
    (("attention",), "v.0", None, "NO_POINTER"),
    (("attention",), "sines.0", None, "NO_POINTER"),
    (("qk_norm_rope",), "cosines", None, "NO_POINTER"),
    (("attention",), "counts", None, "NO_POINTER"),
    (("attention",), "indices", None, "NO_POINTER"),
    (PACKED, "weight", None, "NO_POINTER"),
    (WITH_SCRATCH, "workspace", None, "NO_POINTER"),
    (("norm_modulate_i8",), "out_scale", None, "NO_POINTER"),
    # pointers to where nothing of their kind can be
    (PACKED, "weight", Moved(32), "MISALIGNED"),
    (WITH_SCRATCH, "workspace", Moved(8), "MISALIGNED"),
    (("linear", "linear_pair", "norm_modulate", "patch_embed", *CONVOLUTIONS), "x", Moved(2), "MISALIGNED"),
    (("linear", "linear_pair", "norm_modulate", "unpatchify", *CONVOLUTIONS), "out", Moved(2), "MISALIGNED"),
    (("linear",), "norm", Moved(2), "MISALIGNED"),
    (("linear",), "gate", Moved(2), "MISALIGNED"),
    (("conv3d",), "cache", Moved(2), "MISALIGNED"),
    (("attention",), "q.0", Moved(2), "MISALIGNED"),
    (("attention",), "lengths.0", Moved(4), "MISALIGNED"),
    (("attention",), "indices", Moved(2), "MISALIGNED"),
    (("scheduler_step",), "terms", Moved(2), "MISALIGNED"),
    (("scheduler_step",), "terms", Entry(POINTER, 0, EVIL + 2), "MISALIGNED"),
    # lengths, counts and indices
    (("attention",), "lengths.0", Entry(INT64, 1, 12), "BAD_INDEX"),
    (("attention",), "lengths.0", Entry(INT64, 0, -1), "BAD_INDEX"),
    (("attention",), "counts", Entry(INT32, 17, 3), "BAD_INDEX"),
    (("attention",), "counts", Entry(INT32, 0, -1), "BAD_INDEX"),
    (("attention",), "indices", Entry(INT32, 35, 3), "BAD_INDEX"),
    (("attention",), "indices", Entry(INT32, 1, -1), "BAD_INDEX"),
    (("attention",), "indices", Entry(INT32, 1, 2**31 - 1), "BAD_INDEX"),
    (("attention",), "listed", 0, "BAD_INDEX"),
]

# sizes of a result that has no elements: success, whatever the pointers are
EMPTY = {
    "linear": ("batch", "tokens", "out_features"),
    "linear_pair": ("batch", "tokens", "out_features"),
    "norm_modulate": ("batch", "tokens", "channels"),
    "norm_modulate_i8": ("batch", "tokens", "channels"),
    "qk_norm_rope": ("batch", "tokens", "heads", "head_dim"),
    "scheduler_step": ("batch", "elements", "out_count"),
    "attention": ("batch", "heads", "head_dim", "q_tokens.0"),
    "attention_two": ("batch", "heads", "head_dim"),
    "patch_embed": ("batch", "frames", "height", "width", "features"),
    "unpatchify": ("batch", "channels", "grid_t", "grid_h", "grid_w"),
    "conv3d": ("batch", "frames"),
    "conv3d_winograd": ("batch", "frames"),
}

# functions that take no struct: arguments behind the handle ("memory" lies at a multiple of 64), and what comes of them
OTHERS = [
    ("kinema_linear_pack", (7, 5, 0, 0, "memory", "memory + 1024"), "OK"),
    ("kinema_linear_pack", (7, 0, 0, 0, None, None), "OK"),
    ("kinema_linear_pack", (0, 5, 0, 0, "memory", "memory + 1024"), "BAD_SIZE"),
    ("kinema_linear_pack", (7, -5, 0, 0, "memory", "memory + 1024"), "BAD_SIZE"),
    ("kinema_linear_pack", (2**31, 5, 0, 0, "memory", "memory + 1024"), "BAD_SIZE"),
    ("kinema_linear_pack", (2**30, 2**30, 0, 0, "memory", "memory + 1024"), "BAD_SIZE"),
    ("kinema_linear_pack", (2**24, 1, 4, 0, "memory", "memory + 1024"), "BAD_SIZE"),  # a sum of 32 bits
    ("kinema_linear_pack", (7, 5, 5, 0, "memory", "memory + 1024"), "BAD_DTYPE"),
    ("kinema_linear_pack", (7, 5, 0, 2, "memory", "memory + 1024"), "BAD_OPTION"),
    ("kinema_linear_pack", (7, 5, 0, 0, None, "memory + 1024"), "NO_POINTER"),
    ("kinema_linear_pack", (7, 5, 0, 0, "memory", None), "NO_POINTER"),
    ("kinema_linear_pack", (7, 5, 0, 0, "memory", "memory + 1056"), "MISALIGNED"),
    ("kinema_linear_pack", (7, 5, 0, 0, "memory + 2", "memory + 1024"), "MISALIGNED"),
    ("kinema_linear_packed_bytes", (7, 0, 0, 0), "OK"),
    ("kinema_linear_packed_bytes", (0, 5, 0, 0), "BAD_SIZE"),
    ("kinema_linear_packed_bytes", (7, -1, 0, 0), "BAD_SIZE"),
    ("kinema_linear_packed_bytes", (2**31 - 1, 2**31 - 1, 0, 1), "BAD_SIZE"),
    ("kinema_linear_packed_bytes", (7, 5, -1, 0), "BAD_DTYPE"),
    ("kinema_winograd_pack", (1, 0, 1, 2, None, None), "OK"),
    ("kinema_winograd_pack", (0, 5, 1, 2, "memory", "memory + 1024"), "BAD_SIZE"),
    ("kinema_winograd_pack", (1, 5, 0, 2, "memory", "memory + 1024"), "BAD_SIZE"),
    ("kinema_winograd_pack", (1, 5, 1, 3, "memory", "memory + 1024"), "BAD_OPTION"),
    ("kinema_winograd_pack", (1, 5, 1, 2, None, "memory + 1024"), "NO_POINTER"),
    ("kinema_winograd_pack", (1, 5, 1, 2, "memory", "memory + 1028"), "MISALIGNED"),
    ("kinema_winograd_packed_bytes", (1, 5, 1, 0), "BAD_OPTION"),
    ("kinema_winograd_packed_bytes", (2**31 - 1, 2**31 - 1, 3, 4), "BAD_SIZE"),
    ("kinema_activate", (1, 0, None, None), "OK"),
    ("kinema_activate", (5, 9, "memory", "memory"), "BAD_OPTION"),
    ("kinema_activate", (1, -9, "memory", "memory"), "BAD_SIZE"),
    ("kinema_activate", (1, 9, None, "memory"), "NO_POINTER"),
    ("kinema_exp", (0, None, None), "OK"),
    ("kinema_exp", (2**62, "memory", "memory"), "BAD_SIZE"),
    ("kinema_exp", (9, "memory", "memory + 2"), "MISALIGNED"),
    ("kinema_probe_arithmetic", (0, 0, 1, "memory"), "BAD_SIZE"),
    ("kinema_probe_arithmetic", (0, 2**62, 1, "memory"), "BAD_SIZE"),
    ("kinema_probe_arithmetic", (0, 9, 10**6, "memory"), "BAD_SIZE"),
    ("kinema_probe_arithmetic", (2, 9, 1, "memory"), "BAD_DTYPE"),
    ("kinema_probe_copy", ("memory", "memory + 1024", 0, 1), "BAD_SIZE"),
    ("kinema_probe_copy", ("memory", "memory + 1024", 9, -1), "BAD_SIZE"),
    ("kinema_probe_copy", (None, "memory", 9, 1), "NO_POINTER"),
    *((f"kinema_{op}", (None,), "NO_POINTER") for op in ("linear", "attention", "conv3d", "unpatchify")),
    *((f"kinema_{op}_workspace", (None,), "NO_POINTER") for op in ("linear", "norm_modulate", "scheduler_step")),
]

# who may end a call: what is spoiled in a kinema_control with one flag, and what comes of it
CONTROLS = [
    ("flags", None, "NO_POINTER"),
    ("flags", Moved(4), "MISALIGNED"),
    ("flags", Entry(POINTER, 0, None), "NO_POINTER"),
    ("flags", Entry(POINTER, 0, EVIL + 1), "MISALIGNED"),
    ("flag_count", -1, "BAD_SIZE"),
    ("flag_count", HUGE, "BAD_SIZE"),
    ("flag_count", 0, "OK"),
    ("interval_ms", -1, "BAD_SIZE"),
]
