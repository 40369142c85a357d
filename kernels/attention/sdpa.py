"""`attention` by torch's scaled_dot_product_attention: cuDNN on Hopper and newer GPUs, else FlashAttention-2.

It takes calls whose operands can each be one sequence and that mask nothing (whole.py): self-attention, joint attention
without lengths, cross-attention without a bias. The rest goes to Triton where it runs, else to the reference, which
makes the same call with a mask: lengths, a bias, keys rotated on read, block-causal and block-sparse patterns, e4m3.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.attention.check import checked
from kinema.ops.attention.libraries import sdpa_name
from kinema.ops.attention.whole import delivered, is_whole, joined, rest
from kinema.ops.common import QuantKind
from kinema.ops.common.launch import architecture

# torch tries each in turn; in fp32 or with large heads only the last two take a call
LAST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *LAST]
FLASH_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, *LAST]


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
    if not is_whole(queries, segments, scale, tails=False, **options):
        done: tuple[torch.Tensor, ...] = rest(queries, quantize)(
            queries, segments, scale=scale, outputs=outputs, **options
        )
        return done
    call = joined(queries, segments)
    query, key, value = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
    with _fastest_first(call.q.device):
        y = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return delivered(y.transpose(1, 2), queries, residual, outputs)


def _fastest_first(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda":
        return nullcontext()
    order = FLASH_FIRST if sdpa_name(architecture(device)) == "SDPA" else CUDNN_FIRST
    return sdpa_kernel(order, set_priority=True)
