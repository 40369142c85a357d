"""What every implementation of `scheduler_step` refuses, and its result where there is nothing to sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import torch

from kinema.ops.common.arguments import FLOATS, check_out, misfit
from kinema.ops.scheduler_step import SchedulerStep


def checked(run: Callable[..., tuple[torch.Tensor, ...]]) -> SchedulerStep:
    """`run`, called only with valid arguments that are not empty, and with the dtype of the sums."""

    @wraps(run)
    def scheduler_step(
        terms: Sequence[torch.Tensor],
        coefficients: torch.Tensor,
        *,
        out: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        terms = tuple(terms)
        if not terms or not terms[0].ndim:
            raise ValueError("wanted at least one term, and terms [B, ...] of at least one axis")
        if coefficients.ndim != 3 or coefficients.dtype not in FLOATS:
            raise misfit("coefficients", coefficients, "floats [B, M, K]")
        shape, device, dtype = terms[0].shape, terms[0].device, torch.float32
        batch, outputs, count = coefficients.shape
        if batch != shape[0] or count != len(terms) or any(term.shape != shape for term in terms):
            raise ValueError(
                f"coefficients {tuple(coefficients.shape)} [B, M, K] do not fit terms of shapes "
                f"{[tuple(term.shape) for term in terms]}"
            )
        for term in terms:
            if term.dtype not in FLOATS or term.device != device:
                raise misfit("a term", term, f"floats on {device}")
            if term.dtype == torch.float64:
                dtype = torch.float64
        if out is not None:
            if len(out) != outputs:
                raise ValueError(f"out has {len(out)} buffers, the op writes {outputs}")
            for m, buffer in enumerate(out):
                check_out(buffer, shape, dtype, device, apart=out[:m], onto=terms)
        if shape.numel() and outputs:
            return run(terms, coefficients, dtype, out)
        if out is not None:
            return tuple(out)
        return tuple(torch.empty(shape, dtype=dtype, device=device) for _ in range(outputs))

    return scheduler_step
