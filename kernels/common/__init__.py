"""What all ops share: where a model runs, which implementations run there, and the records that pass between ops."""

from kinema.ops.common.capability import Implementation, Op, Target, fallback_for
from kinema.ops.common.groups import by_group, group_strides, group_strides_of
from kinema.ops.common.numerics import FP8_MAX, INT8_MAX, dense, output_buffer, upcast, write_result
from kinema.ops.common.packed import Packed
from kinema.ops.common.precision import PRECISIONS, Precision, Storage
from kinema.ops.common.quantized import Quantized, QuantKind
from kinema.ops.common.rope import Rope

__all__ = [
    "FP8_MAX",
    "INT8_MAX",
    "PRECISIONS",
    "Implementation",
    "Op",
    "Packed",
    "Precision",
    "QuantKind",
    "Quantized",
    "Rope",
    "Storage",
    "Target",
    "by_group",
    "dense",
    "fallback_for",
    "group_strides",
    "group_strides_of",
    "output_buffer",
    "upcast",
    "write_result",
]
