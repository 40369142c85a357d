"""A forward of four layers of Wan 1.3B at 32,760 tokens, kernel by kernel: eager, recorded, and in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kinema.bench.gpu_session.profiles import summary
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.gpu_session.wan_forward import EXACT, FEW, GRID, config_for, forward, inputs_for, weights_for


@torch.no_grad()
def ask(session: Session) -> None:
    config = config_for(session)
    weights = weights_for(session, config)
    few = inputs_for(session, config, FEW, (1, 2, 2))
    whole = inputs_for(session, config, GRID, (1, 2, 2))
    truth = forward(session, config, weights, "reference", EXACT)(few).double()
    reference = forward(session, config, weights, "reference")
    kinema = forward(session, config, weights, session.pick("auto", "triton"))
    plain = reference(few)
    for case, forward_of in (("eager", kinema), ("reference", reference)):
        # the result is fp32, but the activations were not
        if not session.check(case, forward_of(few).bfloat16(), truth, plain=plain.bfloat16()):
            continue
        call = partial(forward_of, whole)
        _time(session, case, call)
        if forward_of is kinema:
            _time(session, "recorded", session.record(call))


def _time(session: Session, case: str, call: Callable[[], Any]) -> None:
    samples = session.pick(9, 1)  # interpreted, a forward is long
    session.report(case, seconds=session.seconds(call, samples=samples, flush=False))
    session.report(f"{case}, profile", **summary(session.profile(call)))


QUESTION = Question(
    decides="where the time of a forward goes that its ops do not account for: kernels, gaps between them, or clocks",
    serves="the transformer's forward, cuda_graph",
    value=10,
    seconds=30,
    needs=("triton",),
    ask=ask,
)
