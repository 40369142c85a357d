"""Self-attention in e4m3: by Triton, whole and its quantising passes alone, and by cuDNN; beside cuDNN in bf16."""

from __future__ import annotations

import importlib.util
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinema.bench.gpu_session.attended import Attended, attended, sizes
from kinema.bench.gpu_session.cudnn_fp8 import E4M3, CudnnAttention
from kinema.bench.gpu_session.kernels import failure, tiles
from kinema.bench.gpu_session.question import Question, Session


def ask(session: Session) -> None:
    from kinema.ops.attention import triton
    from kinema.ops.attention.triton_tables import TABLES

    table = session.pick("attention/128_fp8", "attention/64_fp8")
    for size, (tokens, heads) in sizes(session).items():
        given = attended(session, tokens, heads, quantize="fp8")
        with sdpa_kernel(session.pick(SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)):
            given.time(session, f"{size}, cuDNN, bf16", given.sdpa())
        for number, tile in tiles(session, TABLES, table):
            call = given.kinema(triton.attention, quantize="fp8")
            given.time(session, f"{size}, Triton, e4m3, tile {number}", call, E4M3, tile=str(tile))
        seconds = session.seconds(partial(_quantize, given))
        session.report(f"{size}, Triton, quantising alone", seconds=seconds)
        _cudnn(session, f"{size}, cuDNN, e4m3, quantised beforehand", given)


def _quantize(given: Attended) -> list[torch.Tensor]:
    """The quantising passes before the kernel."""
    from kinema.ops.attention import FP8_BLOCK
    from kinema.ops.attention.triton_prepare import prepare

    keys = prepare(given.k, fp8=True, block=FP8_BLOCK)
    values = prepare(given.v, fp8=True, block=FP8_BLOCK, channels_first=True)
    return [made.data for made in (prepare(given.q, fp8=True), keys, values)]


def _cudnn(session: Session, case: str, given: Attended) -> None:
    if session.dry or importlib.util.find_spec("cudnn") is None:
        session.skip(case, "needs a GPU" if session.dry else "needs the wheel nvidia-cudnn-frontend")
        return
    try:
        call = CudnnAttention(given.q, given.k, given.v, float(given.truth.abs().amax()))
    except Exception as error:  # no engine for this GPU, or a wheel and a library that do not fit together
        session.skip(case, failure(error))
        return
    given.time(session, case, call, E4M3, call.read)


QUESTION = Question(
    decides="whether quantize_attention='fp8' is faster than cuDNN's bf16 on Hopper at all, and who should run it",
    serves="attention in e4m3",
    value=8,
    seconds=30,
    needs=("triton",),
    ask=ask,
)
