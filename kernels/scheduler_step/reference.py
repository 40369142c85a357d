"""The truth for `scheduler_step`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.ops.common import deliver


def scheduler_step(
    terms: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    *,
    out: Sequence[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    batch, outputs, count = coefficients.shape
    shape = terms[0].shape
    if count != len(terms) or batch != shape[0] or any(term.shape != shape for term in terms):
        raise ValueError(
            f"coefficients {tuple(coefficients.shape)} [B, M, K] do not fit terms of shapes "
            f"{[tuple(term.shape) for term in terms]}"
        )
    dtype = torch.float64 if any(term.dtype == torch.float64 for term in terms) else torch.float32
    wide_terms = [term.to(dtype) for term in terms]
    table = coefficients.to(wide_terms[0].device).reshape(*coefficients.shape, *[1] * (len(shape) - 1))
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
    return tuple(deliver(result, buffer) for result, buffer in zip(results, buffers, strict=True))
