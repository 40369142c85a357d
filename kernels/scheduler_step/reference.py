"""The truth for `scheduler_step`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.ops.common import write_result
from kinema.ops.scheduler_step.check import checked


@checked
def scheduler_step(
    terms: tuple[torch.Tensor, ...],
    coefficients: torch.Tensor,
    dtype: torch.dtype,
    out: Sequence[torch.Tensor] | None,
) -> tuple[torch.Tensor, ...]:
    outputs = coefficients.shape[1]
    wide_terms = [term.to(dtype) for term in terms]
    table = coefficients.to(wide_terms[0].device).reshape(*coefficients.shape, *[1] * (terms[0].ndim - 1))
    results = []
    for m in range(outputs):
        total = torch.zeros_like(wide_terms[0])
        for k, term in enumerate(wide_terms):
            c = table[:, m, k].to(dtype)
            if bool((c != 0).all()):
                total = total + c * term
            elif bool((c != 0).any()):
                total = total + torch.where(c != 0, c * term, 0.0)
        results.append(total)
    buffers = out if out is not None else [None] * outputs
    return tuple(write_result(result, buffer) for result, buffer in zip(results, buffers, strict=True))
