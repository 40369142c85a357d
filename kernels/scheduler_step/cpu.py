"""`scheduler_step` on the native CPU kernels (csrc/cpu/rows.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from kinema.ops.common import output_buffer
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.native import check_readable, cpu, dense_fp32, workspace
from kinema.ops.common.threads import thread_count
from kinema.ops.scheduler_step import reference
from kinema.ops.scheduler_step.check import checked


class SchedulerStepArguments(ctypes.Structure):
    """kinema_scheduler_step_args of csrc/include/kinema.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("term_count", ctypes.c_int64),
        ("out_count", ctypes.c_int64),
        ("terms", ctypes.c_void_p),
        ("term_strides", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("outs", ctypes.c_void_p),
        ("out_strides", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


@checked
def scheduler_step(
    terms: tuple[torch.Tensor, ...],
    coefficients: torch.Tensor,
    dtype: torch.dtype,
    out: Sequence[torch.Tensor] | None,
) -> tuple[torch.Tensor, ...]:
    if dtype == torch.float64:  # only tests sum in fp64
        made: tuple[torch.Tensor, ...] = unchecked(reference.scheduler_step)(terms, coefficients, dtype, out)
        return made
    check_readable("a term", terms[0], terms[0].dtype)
    batch, outputs, count = coefficients.shape
    shape = terms[0].shape
    fp32_terms = [term.float() for term in terms]
    # a window of a longer clip has gaps between its channels
    fp32_terms = [t if t.is_contiguous() or t[:1].is_contiguous() else t.contiguous() for t in fp32_terms]
    given = out if out is not None else [None] * outputs
    dense = len(shape) - 1
    results = tuple(output_buffer(buffer, shape, torch.float32, terms[0].device, contiguous=dense) for buffer in given)
    table = dense_fp32(coefficients if coefficients.is_cpu else coefficients.cpu())
    addresses = (ctypes.c_int64 * (2 * (count + outputs)))(
        *(t.data_ptr() for t in fp32_terms),
        *(t.data_ptr() for t in results),
        *(t.stride(0) for t in fp32_terms),
        *(t.stride(0) for t in results),
    )
    first = ctypes.addressof(addresses)
    arguments = SchedulerStepArguments(
        batch,
        shape[1:].numel(),
        count,
        outputs,
        first,
        first + 8 * (count + outputs),
        table.data_ptr(),
        first + 8 * count,
        first + 8 * (2 * count + outputs),
        None,
        thread_count(),
    )
    native = cpu()
    arguments.workspace = workspace(native.ask("kinema_scheduler_step_workspace", arguments))
    native.call("kinema_scheduler_step", arguments)
    return results
