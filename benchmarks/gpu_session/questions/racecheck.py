"""Every Triton kernel under compute-sanitizer's racecheck: small calls of odd sizes."""

from __future__ import annotations

from functools import partial

from kinema.bench.gpu_session.question import Question
from kinema.bench.gpu_session.sanitizer import ask_with

QUESTION = Question(
    decides="whether warps of a kernel race in shared memory, which no test without a GPU can show",
    serves="every Triton kernel",
    value=5,
    seconds=45,
    needs=("triton",),
    ask=partial(ask_with, "racecheck", 55.0),
)
