"""One denoising step of many requests: those of like shape share a forward."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack

import torch

from kinema import schedulers
from kinema.caches import Run
from kinema.denoise.batching import forward_together
from kinema.denoise.replay import Recordings
from kinema.denoise.state import RequestState
from kinema.errors import Interrupted, RequestError
from kinema.fields.values import each_of_kind
from kinema.loading.components import Components
from kinema.ops import Ops
from kinema.ops.running import running


def step_together(
    components: Components,
    ops: Ops,
    states: Sequence[RequestState],
    *,
    threads: int | None,
    recordings: Recordings | None,
) -> None:
    """Take a step of each that is not done. One whose `interrupt` is set meanwhile stays as it was; the others take it.

    recordings: of forwards, to be replayed. None: each forward makes its calls.
    """
    groups: dict[str, list[RequestState]] = {}
    given = each_of_kind("states", states, RequestState)
    if len({id(state) for state in given}) < len(given):
        raise RequestError("a request is given twice: each state takes one step, so give it once")
    for state in given:
        state.check_model(components.model)
        state.check_whole()
        if not state.done:
            groups.setdefault(state.expert, []).append(state)
    for expert, group in groups.items():
        while left := [state for state in group if not state.done]:
            try:
                _step(components, ops, expert, left, threads, recordings)
                break
            except Interrupted:
                if not any(state.interrupt for state in left):  # it was a flag of the caller's
                    raise
        if all(state.done or state.expert != expert for state in group):
            components.release(expert)


def _step(
    components: Components,
    ops: Ops,
    expert: str,
    group: list[RequestState],
    threads: int | None,
    recordings: Recordings | None,
) -> None:
    pixels = sum(state.request.pixels for state in group)
    with ExitStack() as stages:
        for state in group:
            stages.enter_context(state.stats.stage("denoise", components.loading))
        with running("a step", threads, *(state.stop for state in group), ops=ops, pixels=pixels):
            plans = [state.plan() for state in group]
            transformer = components.transformer(expert)
            rows = [
                state.rows(transformer, expert, guided=plan.guided) if isinstance(plan, Run) else []
                for state, plan in zip(group, plans, strict=True)
            ]
            predictions = forward_together(transformer, [part for parts in rows for part in parts], recordings)
        # outside the flags: one that is set from here on takes effect after this step
        with running("a step", threads):
            taken = iter(predictions)
            _advance(ops, group, [[next(taken) for _ in parts] for parts in rows], expert)


def _advance(
    ops: Ops, group: Sequence[RequestState], predictions: Sequence[Sequence[torch.Tensor]], expert: str
) -> None:
    """Guide and take one scheduler step, those of like samplers and shapes in one call.

    predictions: [R, C, T, h, w] for each of a state's `contexts`, or none where it holds the step.
    """
    alike: dict[Hashable, list[tuple[RequestState, list[torch.Tensor], int]]] = {}
    for state, given in zip(group, predictions, strict=True):
        samples, core = len(state.latents), state.schedule.core
        branches = list(given)
        if len(given) == 1:  # of all rows together
            branches = [given[0][i : i + samples] for i in range(0, len(given[0]), samples)]
        outputs = branches if state.cache is None else state.cached(ops, branches, expert)
        key = (core.delays, core.has_noise, state.latents.shape[1:], state.latents.dtype)
        alike.setdefault(key, []).append((state, outputs, len(branches)))
    for members in alike.values():
        states = [state for state, _, _ in members]
        for state in states:
            state.begin_update()
        following = schedulers.step_batch(
            ops,
            [state.schedule for state in states],
            [state.latents for state in states],
            [cond for _, (cond, *_), _ in members],
            [uncond[0] if uncond else None for _, (_, *uncond), _ in members],
            guidance=[state.guidance[expert] if uncond else 1.0 for state, (_, *uncond), _ in members],
        )
        for (state, _, forwards), latents in zip(members, following, strict=True):
            state.end_update(latents, forwards)
