"""How long the host takes to launch each op: the op, its launch through kinema's door, Triton's, the bare kernel."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kinema.bench import op_calls as calls
from kinema.bench.gpu_session.drawn import Drawn, ExactDrawn, flowing
from kinema.bench.gpu_session.kernels import failure
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.op_calls import Call
from kinema.ops.common.launch import Launch, architecture, launch, options, recording


def ask(session: Session) -> None:
    tokens, heads, head_dim, frame = session.pick((80, 3, 64, 64), (5, 1, 16, 2))
    dim, grid = heads * head_dim, session.pick((5, 8, 8), (1, 2, 2))
    conv = partial(calls.conv3d, *session.pick((16, 16, (3, 3, 3)), (4, 4, (1, 1, 1))), (1, frame, frame))
    prepared: dict[str, Callable[..., Call]] = {
        "linear": partial(calls.linear, tokens, dim, dim, gate=1, residual=True),
        "norm_modulate": partial(calls.modulated, tokens, dim, 1),
        "qk_norm_rope": partial(calls.qk, tokens, heads, head_dim, parts=3, rope=tokens),
        "attention": partial(calls.attention, heads, head_dim, tokens, tokens, fused=True),
        "quantize": partial(calls.quantize, tokens, dim),
        "patch_embed": partial(calls.patch_embed, 16, dim, grid),
        "unpatchify": partial(calls.unpatchify, 16, grid),
        "scheduler_step": partial(calls.scheduler_step, (16, *grid)),
        "conv3d": partial(conv, norm=True),
    }
    for op, prepare in prepared.items():
        target = flowing(session.device, "int8" if op == "quantize" else "bf16")
        ours, plain = (importlib.import_module(f"kinema.ops.{op}.{backend}") for backend in ("triton", "reference"))
        call = prepare(ours, target, Drawn(session.device))
        truth = prepare(plain, target, ExactDrawn(session.device))()
        expected = prepare(plain, target, Drawn(session.device))()
        if not session.check(op, call(), truth, plain=expected, quantized=torch.int8 if op == "quantize" else None):
            continue
        session.report(op, host_seconds=session.host_seconds(call), seconds=session.seconds(call, flush=False))
        with recording(architecture(session.device)) as recorded:
            call()
        for number, made in enumerate(recorded.launches):
            _launch(session, f"{op}, launch {number}", made)


def _launch(session: Session, case: str, made: Launch) -> None:
    """One launch as the op makes it, and by ever fewer layers."""
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
        except Exception as error:  # another Triton keeps its compiled kernels otherwise
            session.skip(f"{case}, bare", failure(error))
    session.report(case, kernel=made.kernel.__name__, **fields)


def _bare(compiled: Any, made: Launch) -> Callable[[], Any]:
    """The compiled kernel on the current stream, nothing looked up and nothing specialised."""
    grid = (*made.grid, 1, 1)[:3]
    arguments = [made.arguments[name] for name in made.kernel.arg_names]
    run = compiled[grid]
    run(*arguments)
    return partial(run, *arguments)


QUESTION = Question(
    decides="where an eager launch's 50 to 100 µs go, and what a cache of compiled kernels would save",
    serves="kernels/common/launch.py",
    value=6,
    seconds=25,
    needs=("triton",),
    ask=ask,
)
