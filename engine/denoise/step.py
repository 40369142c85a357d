"""One denoising step of many requests: those of like shape share a forward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

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
    with ExitStack() as stages:
        for state in group:
            stages.enter_context(state.stats.stage("denoise", components.loading))
        with running("a step", threads, *(state.stop for state in group)):
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
            for state, parts in zip(group, rows, strict=True):
                if parts:
                    state.advance(ops, [next(taken) for _ in parts], expert)
                else:
                    state.skip(ops, expert)
