"""The clean sample that a model's output implies, and the output that a clean sample implies: one linear map each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema.schedulers.core import Grid, SchedulerCore
from kinema.schedulers.step import StepOps


def noise_levels(core: SchedulerCore, grid: Grid, begin: int = 0) -> tuple[float, ...]:
    """σ / (α + σ) before each step of a run: σ itself for flow matching, from 1 (noise alone) to 0."""
    pairs = [core.noising(grid, index) for index in range(begin, len(grid))]
    return tuple(sigma / (alpha + sigma) for alpha, sigma in pairs)


def combined(ops: StepOps, terms: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Σ factor·term, each [B, ...] of any float dtype, in fp32: the scheduler_step op with one row."""
    table = torch.tensor(factors, dtype=torch.float32, device="cpu").expand(len(terms[0]), 1, len(terms))
    return ops.scheduler_step(terms, table.contiguous().to(terms[0].device, non_blocking=True))[0]


def guided_output(
    ops: StepOps, cond: torch.Tensor, uncond: torch.Tensor | None = None, guidance: float = 1.0
) -> torch.Tensor:
    """uncond + guidance·(cond - uncond), [B, ...] fp32."""
    if uncond is None:
        return combined(ops, [cond], [1.0])
    return combined(ops, [cond, uncond], [guidance, 1.0 - guidance])
