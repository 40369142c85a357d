"""Self-attention in bf16 at Wan's sizes: Triton's tiles, cuDNN, FlashAttention."""

from __future__ import annotations

from torch.nn.attention import SDPBackend, sdpa_kernel

from kinema.bench.gpu_session.attended import attended, sizes
from kinema.bench.gpu_session.kernels import tiles
from kinema.bench.gpu_session.question import Question, Session
from kinema.ops.attention.libraries import best_version, why_not_used
from kinema.ops.common.launch import architecture


def ask(session: Session) -> None:
    from kinema.ops.attention import triton
    from kinema.ops.attention.triton_tables import TABLES

    table = session.pick("attention/128", "attention/64")
    # on a CPU torch has one kernel, and the plain formula
    libraries = session.pick(
        {"cuDNN": SDPBackend.CUDNN_ATTENTION, "torch's FlashAttention-2": SDPBackend.FLASH_ATTENTION},
        {"cuDNN": SDPBackend.MATH, "torch's FlashAttention-2": SDPBackend.FLASH_ATTENTION},
    )
    for size, (tokens, heads) in sizes(session).items():
        given = attended(session, tokens, heads)
        for number, tile in tiles(session, TABLES, table):
            given.time(session, f"{size}, Triton, tile {number}", given.kinema(triton.attention), tile=str(tile))
        for name, backend in libraries.items():
            with sdpa_kernel(backend):
                given.time(session, f"{size}, {name}", given.sdpa())
        version = None if session.dry else best_version(architecture(session.device))
        if version is None or why_not_used(version):
            session.skip(f"{size}, flash-attn", why_not_used(version) if version else "none is installed")
            continue
        from kinema.ops.attention import flash_attn

        given.time(session, f"{size}, {version.name}", given.kinema(flash_attn.attention))


QUESTION = Question(
    decides="which attention the plan ranks first, and how far a hand-written one would have to go",
    serves="attention",
    value=9,
    seconds=25,
    needs=("triton",),
    ask=ask,
)
