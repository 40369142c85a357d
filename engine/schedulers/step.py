"""One scheduler step as one call of the scheduler_step op, for one request or for several at different steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kinema.errors import RequestError
from kinema.ops.scheduler_step import SchedulerStep
from kinema.schedulers.core import Grid, SchedulerCore
from kinema.schedulers.noise import draw_noise
from kinema.schedulers.state import SchedulerState


class StepOps(Protocol):
    """The part of `Ops` that a scheduler needs; the op's reference module is one too."""

    @property
    def scheduler_step(self) -> SchedulerStep: ...


def step(
    ops: StepOps,
    state: SchedulerState,
    sample: torch.Tensor,
    cond: torch.Tensor,
    uncond: torch.Tensor | None = None,
    *,
    guidance: float = 1.0,
    noise: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next sample [B, ...] in fp32; `state` moves on by one step.

    sample, cond, uncond, noise: [B, ...], any float dtype; the guided output is uncond + guidance·(cond - uncond).
    noise: fresh noise for samplers that draw it; drawn from the state's generator if left out.
    out: fp32 buffer for the result, which may be `sample` itself.
    """
    return step_batch(
        ops, [state], [sample], [cond], [uncond], guidance=[guidance], noise=[noise], out=None if out is None else [out]
    )[0]


def step_batch(
    ops: StepOps,
    states: Sequence[SchedulerState],
    samples: Sequence[torch.Tensor],
    conds: Sequence[torch.Tensor],
    unconds: Sequence[torch.Tensor | None],
    *,
    guidance: Sequence[float],
    noise: Sequence[torch.Tensor | None] | None = None,
    out: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """`step` of several runs in one launch: one entry per run in every argument.

    The runs may be at different steps of different grids with different guidance and batch sizes, but must have
    the same delay lines (the same scheduler, at the same solver order) and the same sample shape beyond B.
    """
    core = states[0].core
    if any((s.core.delays, s.core.has_noise) != (core.delays, core.has_noise) for s in states):
        raise RequestError("runs of schedulers with different histories cannot share a step; step them separately")
    columns = [
        _terms(state, sample, cond, uncond, None if noise is None else noise[i])
        for i, (state, sample, cond, uncond) in enumerate(zip(states, samples, conds, unconds, strict=True))
    ]
    for scale, uncond in zip(guidance, unconds, strict=True):
        if scale != 1.0 and uncond is None:
            raise RequestError(f"guidance {scale} needs the unconditional output as well; pass uncond, or guidance=1")
    device = samples[0].device
    rows = [
        state.coefficients(scale, device).expand(len(sample), -1, -1)
        for state, sample, scale in zip(states, samples, guidance, strict=True)
    ]
    coefficients = rows[0] if len(rows) == 1 else torch.cat(rows)
    if len(states) == 1:
        terms = columns[0]
        results = ops.scheduler_step(terms, coefficients, out=_buffers(states[0], terms, out))
        results_of = [results]
    else:
        terms = [torch.cat(column) for column in zip(*columns, strict=True)]
        results = ops.scheduler_step(terms, coefficients)
        counts = [len(sample) for sample in samples]
        # copies: runs share no memory. Its stub knows another form of it
        parts = [torch.split_with_sizes_copy(result, counts) for result in results]  # type: ignore[func-returns-value]
        results_of = list(zip(*parts, strict=True))
    following = []
    for i, (state, (sample, *entries)) in enumerate(zip(states, results_of, strict=True)):
        for line, entry in zip(state.history, entries, strict=True):
            line.insert(0, entry)
            line.pop()
        state.index += 1
        following.append(out[i].copy_(sample) if out is not None and out[i] is not sample else sample)
    return following


def add_noise(
    ops: StepOps,
    core: SchedulerCore,
    grid: Grid,
    index: int | Sequence[int],
    sample: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """A clean `sample` [B, ...] brought to the level of step `index` (one, or one per sample), in fp32."""
    indices = [index] * len(sample) if isinstance(index, int) else index
    levels = [[core.noising(grid, i)] for i in indices]
    return ops.scheduler_step((sample, noise), torch.tensor(levels, dtype=torch.float32, device=sample.device))[0]


def _terms(
    state: SchedulerState,
    sample: torch.Tensor,
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> list[torch.Tensor]:
    """The op's terms. Those that this run lacks have zero coefficients and are not read: the sample stands in."""
    terms = [sample, cond, sample if uncond is None else uncond]
    terms += [sample if entry is None else entry for line in state.history for entry in line]
    if state.core.has_noise:
        if noise is None and state.core.draws_noise(state.eta):
            noise = draw_noise(sample.shape, state.generator, device=sample.device)
        terms.append(sample if noise is None else noise)
    return terms


def _buffers(
    state: SchedulerState, terms: Sequence[torch.Tensor], out: Sequence[torch.Tensor] | None
) -> list[torch.Tensor] | None:
    """Buffers for all results: the oldest entry of each line is overwritten by the newest. None: allocate."""
    oldest = [line[-1] for line in state.history]
    if torch.is_grad_enabled() and any(term.requires_grad for term in terms):
        return None
    ready = [b for b in oldest if b is not None and b.is_inference() == torch.is_inference_mode_enabled()]
    if len(ready) < len(oldest):
        return None
    if out is not None:
        return [out[0], *ready]
    dtype = torch.float64 if any(term.dtype == torch.float64 for term in terms) else torch.float32
    return [torch.empty(terms[0].shape, dtype=dtype, device=terms[0].device), *ready]
