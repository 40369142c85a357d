"""Wan 1.3B's linears at 32,760 tokens: each of Triton's tiles, with and without the epilogue, and cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kinema.bench.gpu_session.drawn import Drawn, ExactDrawn, flowing
from kinema.bench.gpu_session.kernels import tiles, time_kernel
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.torch_ops import torch_call
from kinema.ops import calls as op_calls
from kinema.ops.calls import Call
from kinema.ops.linear import reference

TOKENS, DIM, FFN = 32760, 1536, 8960
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "out, gate and residual": (DIM, DIM, {"gate": 1, "residual": True}),
    "out, nothing": (DIM, DIM, {}),
    "cross out, residual": (DIM, DIM, {"residual": True}),
    "up, GELU": (DIM, FFN, {"activation": "gelu_tanh"}),
    "up, nothing": (DIM, FFN, {}),
    "down, gate and residual": (FFN, DIM, {"gate": 1, "residual": True}),
    "down, nothing": (FFN, DIM, {}),
    "qkv": (DIM, 3 * DIM, {}),
}


def ask(session: Session) -> None:
    from kinema.ops.linear import triton
    from kinema.ops.linear.triton_tables import TABLES

    target = flowing(session.device)
    for name, (wide_in, wide_out, options) in CASES.items():
        into, out = session.pick((wide_in, wide_out), (48, 40))
        prepare: Callable[..., Call] = partial(op_calls.linear, session.pick(TOKENS, 35), into, out, **options)
        truth = prepare(reference, target, ExactDrawn(session.device))()
        ours = prepare(triton, target, Drawn(session.device))
        plain = prepare(reference, target, Drawn(session.device))
        flops = 2 * truth.numel() * into
        expected = plain()
        for number, tile in tiles(session, TABLES, "linear/large"):
            case = f"{name}, Triton, tile {number}"
            time_kernel(session, case, ours, truth, plain=expected, flops=flops, tile=str(tile))
        time_kernel(session, f"{name}, torch, step by step", plain, truth, plain=expected, flops=flops)
        nearest = torch_call("linear", plain)
        if nearest is not None and not nearest.whole:
            session.report(f"{name}, cuBLAS, without what follows", flops=flops, seconds=session.seconds(nearest.call))


QUESTION = Question(
    decides="what epilogues cost in Triton, tile by tile, beside the plain product",
    serves="linear",
    value=7,
    seconds=35,
    needs=("triton",),
    ask=ask,
)
