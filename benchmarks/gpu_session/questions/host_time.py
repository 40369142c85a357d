"""How long the host takes to launch each op: the op, its launch by `launch`, Triton's, the bare compiled kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kinema.bench.gpu_session.kernels import failure
from kinema.bench.gpu_session.little_calls import SAMPLE, TINY, little
from kinema.bench.gpu_session.question import Question, Session
from kinema.ops.common.launch import Launch, architecture, launch, options, recording


def ask(session: Session) -> None:
    for given in little(session.device, session.pick(SAMPLE, TINY)):
        op, call = given.op, given.call
        if not session.check(op, call(), given.truth, plain=given.plain, quantized=given.quantized):
            continue
        session.report(op, host_seconds=session.host_seconds(call), seconds=session.seconds(call, flush=False))
        with recording(architecture(session.device)) as recorded:
            call()
        for number, made in enumerate(recorded.launches):
            _launch(session, f"{op}, launch {number}", made)


def _launch(session: Session, case: str, made: Launch) -> None:
    """One launch as the op makes it, then through ever fewer layers."""
    given = {name: value for name, value in made.arguments.items() if name not in made.config.blocks}
    whole = partial(launch, made.kernel, made.grid, made.config, **given)
    chosen = {} if session.dry else options(made.config)  # the interpreter takes none
    by_triton = partial(made.kernel[made.grid], **made.arguments, **chosen)
    fields = {
        "launch_host_seconds": session.host_seconds(whole),
        "triton_host_seconds": session.host_seconds(by_triton),
    }
    if not session.dry:
        try:
            bare = _bare(by_triton(), made)
            torch.cuda.synchronize()
            fields["kernel_host_seconds"] = session.host_seconds(bare)
        except Exception as error:  # another Triton stores its compiled kernels differently
            session.skip(f"{case}, bare", failure(error))
    session.report(case, kernel=made.kernel.__name__, **fields)


def _bare(compiled: Any, made: Launch) -> Callable[[], Any]:
    """The compiled kernel on the current stream, without look-up or specialisation."""
    grid = (*made.grid, 1, 1)[:3]
    arguments = [made.arguments[name] for name in made.kernel.arg_names]
    run = compiled[grid]
    run(*arguments)
    return partial(run, *arguments)


QUESTION = Question(
    decides="where the host's time for an eager launch goes, and what a cache of compiled kernels would save",
    serves="kernels/common/launch.py",
    value=6,
    seconds=25,
    needs=("triton",),
    ask=ask,
)
