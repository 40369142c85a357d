"""The same forward by torch.compile of a plain PyTorch twin: what one gets without any kernel of kinema's."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.attention import sdpa_kernel

from kinema.bench.gpu_session.profiles import summary
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.gpu_session.wan_forward import EXACT, FEW, GRID, Inputs, config_for, forward, inputs_for, weights_for
from kinema.bench.gpu_session.wan_twin import WanTwin
from kinema.ops.attention.sdpa import CUDNN_FIRST


@torch.no_grad()
def ask(session: Session) -> None:
    config = config_for(session)
    weights = weights_for(session, config)
    few = inputs_for(session, config, FEW, (1, 2, 2))
    whole = inputs_for(session, config, GRID, (1, 3, 2))
    reference = forward(session, config, weights, "reference")
    truth = forward(session, config, weights, "reference", EXACT)(few).double()
    eager = WanTwin(config, weights, torch.bfloat16)
    compiler = torch.compile(backend=session.pick("inductor", "eager"), fullgraph=True, dynamic=False)
    compiled = WanTwin(config, weights, torch.bfloat16, compiler)
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        if not session.check("eager", _forward(eager, few).bfloat16(), truth, plain=reference(few).bfloat16()):
            return
        _time(session, "eager", partial(_forward, eager, whole))
        started = time.perf_counter()
        result = _forward(compiled, whole)
        first = time.perf_counter() - started
        # compiled for this size, whose only truth is the uncompiled twin's result
        exact = _forward(eager, whole).double()
        if session.check("compiled", result.bfloat16(), exact, plain=reference(whole).bfloat16()):
            _time(session, "compiled", partial(_forward, compiled, whole), first_seconds=first)


def _time(session: Session, case: str, call: Callable[[], torch.Tensor], **fields: float) -> None:
    session.report(case, **fields, seconds=session.seconds(call, flush=False))
    session.report(f"{case}, profile", **summary(session.profile(call)))


def _forward(twin: WanTwin, given: Inputs) -> torch.Tensor:
    return twin(given.latents, given.timestep, given.text)


QUESTION = Question(
    decides="how far kinema's forward is ahead of what torch.compile makes of plain PyTorch, and in which kernels",
    serves="the transformer's forward",
    value=6,
    seconds=45,
    ask=ask,
)
