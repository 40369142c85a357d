"""scheduler_step: guidance and the whole multistep update as one linear map over the latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kinema.ops.common import Implementation, Op
from kinema.ops.common.native import cpu_implementation
from kinema.ops.common.triton_target import triton_implementation


class SchedulerStep(Protocol):
    def __call__(
        self,
        terms: Sequence[torch.Tensor],
        coefficients: torch.Tensor,
        *,
        out: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """output[m] = Σ_k coefficients[:, m, k] · terms[k], all outputs in one pass over the terms.

        Every sampler here is linear in the sample, the model's outputs (conditional and unconditional, so
        guidance is in the coefficients), its history and fresh noise; what differs is a small table.
        terms: K ≥ 1 tensors [B, ...] of one shape, any float dtype, each sample contiguous, any stride over B; they
        may be empty.
        coefficients: [B, M, K] fp32, one row per sample, so that requests at different steps share a launch. A
        term whose coefficients are all zero for a sample is not read there (it may hold NaN).
        Returns M tensors of the terms' shape in fp32 (fp64 if any term is, summed so); each `out`, of that
        dtype, may be a term itself, and shares no memory with a term or with another `out` otherwise.
        """
        ...


OP = Op(
    "scheduler_step",
    ("scheduler_step",),
    (
        triton_implementation("scheduler_step"),
        cpu_implementation("scheduler_step"),
        Implementation("reference", "kinema.ops.scheduler_step.reference"),
    ),
)
