"""`scheduler_step` in Triton: a program reads all terms of a run of values, then writes all outputs of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kinema.ops.common import output_buffer
from kinema.ops.common.launch import Config, launch, select_config
from kinema.ops.common.triton_numerics import fp32
from kinema.ops.scheduler_step.check import checked

# 8 values a thread: with eight terms in flight, 64 registers
VALUES = {
    0: Config({"BLOCK": 128}),
    80: Config({"BLOCK": 1024}, warps=4, stages=1),
}


@checked
def scheduler_step(
    terms: tuple[torch.Tensor, ...],
    coefficients: torch.Tensor,
    dtype: torch.dtype,
    out: Sequence[torch.Tensor] | None,
) -> tuple[torch.Tensor, ...]:
    batch, outputs, _ = coefficients.shape
    shape, device = terms[0].shape, terms[0].device
    for term in terms:
        if not term[0].is_contiguous():
            raise ValueError(f"a term of shape {tuple(shape)} has strides {term.stride()}, wanted contiguous samples")
    results = tuple(
        output_buffer(None if out is None else out[m], shape, dtype, device, contiguous=len(shape) - 1)
        for m in range(outputs)
    )
    table = coefficients.to(device)
    size = shape[1:].numel()
    config = select_config("scheduler_step", VALUES, device)
    launch(
        _scheduler_step,
        (triton.cdiv(size, config.blocks["BLOCK"]), batch),
        config,
        terms=terms,
        outputs=results,
        coefficients=table,
        size=size,
        coefficients_b=table.stride(0),
        coefficients_m=table.stride(1),
        coefficients_k=table.stride(2),
        terms_b=tuple(term.stride(0) for term in terms),
        outputs_b=tuple(result.stride(0) for result in results),
        DOUBLE=dtype == torch.float64,
    )
    return results


@triton.jit
def _scheduler_step(
    terms,
    outputs,
    coefficients,
    size,
    coefficients_b,
    coefficients_m,
    coefficients_k,
    terms_b,
    outputs_b,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """terms, outputs: tuples of pointers, of any dtypes; terms_b, outputs_b: their strides over samples."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    coefficients += b * coefficients_b

    values = ()
    for k in tl.static_range(len(terms)):
        largest = tl.abs(tl.load(coefficients + k * coefficients_k))
        for m in tl.static_range(1, len(outputs)):
            largest = tl.maximum(largest, tl.abs(tl.load(coefficients + m * coefficients_m + k * coefficients_k)))
        # compared as a vector: the interpreter turns a comparison of scalars into a number
        read = inside & (tl.zeros((BLOCK,), tl.float32) + largest > 0.0)
        term = tl.load(terms[k] + b * terms_b[k] + i, mask=read, other=0.0)
        values = values + (_widened(term, DOUBLE),)  # type: ignore[assignment]
    # An output may be a term, and with terms of different widths other threads store it than those that loaded it.
    tl.debug_barrier()
    for m in tl.static_range(len(outputs)):
        total = tl.zeros((BLOCK,), tl.float64 if DOUBLE else tl.float32)
        for k in tl.static_range(len(terms)):
            c = tl.load(coefficients + m * coefficients_m + k * coefficients_k)
            total += _widened(c, DOUBLE) * values[k]
        tl.store(outputs[m] + b * outputs_b[m] + i, total, mask=inside)


@triton.jit
def _widened(x, DOUBLE: tl.constexpr):
    """x in the dtype of the sums: fp64 if DOUBLE, else fp32."""
    if x.dtype == tl.float64:
        return x
    elif DOUBLE:
        return fp32(x).to(tl.float64)
    else:
        return fp32(x)
