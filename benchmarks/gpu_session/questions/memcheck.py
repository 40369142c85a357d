"""Every Triton kernel under compute-sanitizer's memcheck: small calls of odd sizes, each tensor in its own memory."""

from __future__ import annotations

from functools import partial

from kinema.bench.gpu_session.question import Question
from kinema.bench.gpu_session.sanitizer import ask_with

QUESTION = Question(
    decides="whether a kernel reads or writes behind the end of a tensor, where the interpreter cannot see it",
    serves="every Triton kernel",
    value=6,
    seconds=45,
    needs=("triton",),
    ask=partial(ask_with, "memcheck", 55.0),
)
