"""One small call of every op that has a Triton kernel."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kinema.bench.gpu_session.drawn import Drawn, ExactDrawn, flowing
from kinema.ops import calls
from kinema.ops.calls import Call

Prepare = Callable[..., Call]


@dataclass(frozen=True)
class Sizes:
    """grid: of latents, T, H, W, divisible by patches of 2×2; frame: height and width of the convolution's input."""

    tokens: int
    heads: int
    head_dim: int
    grid: tuple[int, int, int]
    channels: int
    frame: tuple[int, int]


SAMPLE = Sizes(80, 3, 64, (5, 8, 8), 16, (64, 64))  # of the sample model
ODD = Sizes(37, 3, 24, (3, 6, 2), 10, (7, 5))  # multiples of no tile, and hardly of loads of 16 bytes
TINY = Sizes(5, 1, 16, (1, 2, 2), 4, (2, 2))  # for the interpreter


def little_calls(sizes: Sizes) -> dict[str, Prepare]:
    """By op; each takes functions, a target and inputs (calls.py)."""
    tokens, heads, head_dim, grid = sizes.tokens, sizes.heads, sizes.head_dim, sizes.grid
    dim, channels = heads * head_dim, sizes.channels
    kernel = (3, 3, 3) if sizes is not TINY else (1, 1, 1)
    return {
        "linear": partial(calls.linear, tokens, dim, dim, gate=1, residual=True),
        "norm_modulate": partial(calls.modulated, tokens, dim, 1),
        "qk_norm_rope": partial(calls.qk, tokens, heads, head_dim, operands=2, parts=3, rope=tokens),
        "attention": partial(calls.attention, heads, head_dim, tokens, tokens, fused=True),
        "quantize": partial(calls.quantize, tokens, dim),
        "patch_embed": partial(calls.patch_embed, channels, dim, grid),
        "unpatchify": partial(calls.unpatchify, channels, grid),
        "scheduler_step": partial(calls.scheduler_step, (channels, *grid)),
        "conv3d": partial(calls.conv3d, channels, channels, kernel, (1, *sizes.frame), norm=True, residual=True),
    }


@dataclass(frozen=True)
class Little:
    """A call by Triton, and the arguments of `Session.check` for its result."""

    op: str
    call: Call
    truth: Any
    plain: Any
    quantized: torch.dtype | None


def little(device: torch.device, sizes: Sizes, ops: tuple[str, ...] = ()) -> Iterator[Little]:
    """One after the other, or those of `ops` alone."""
    for op, prepare in little_calls(sizes).items():
        if ops and op not in ops:
            continue
        target = flowing(device, "int8" if op == "quantize" else "bf16")
        ours, plain = (importlib.import_module(f"kinema.ops.{op}.{backend}") for backend in ("triton", "reference"))
        truth, expected = (prepare(plain, target, new(device))() for new in (ExactDrawn, Drawn))
        rounded = torch.int8 if op == "quantize" else None
        yield Little(op, prepare(ours, target, Drawn(device)), truth, expected, rounded)
