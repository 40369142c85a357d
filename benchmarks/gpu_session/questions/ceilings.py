"""What the GPU gives at most: a copy, cuBLAS in bf16 and e4m3 products, on random data."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from kinema.bench.gpu_session.drawn import Drawn
from kinema.bench.gpu_session.kernels import time_kernel
from kinema.bench.gpu_session.question import Question, Session

TOKENS = 32760
SHAPES = {  # of Wan 1.3B: features in and out
    "qkv": (1536, 4608),
    "out": (1536, 1536),
    "up": (1536, 8960),
    "down": (8960, 1536),
    "out of the model": (1536, 64),
}
CHECKED = 256  # rows that are held against float64


def ask(session: Session) -> None:
    _copy(session)
    tokens = session.pick(TOKENS, 48)
    for name, shape in SHAPES.items():
        into, out = session.pick(shape, (64, 32))
        new = Drawn(session.device)
        x, weight = new(tokens, into, dtype=torch.bfloat16), new(out, into, dtype=torch.bfloat16)
        flops = 2 * tokens * into * out
        truth = x[:CHECKED].double() @ weight.double().t()
        time_kernel(session, f"{name}, bf16", partial(F.linear, x, weight), truth, read=_some, flops=flops)
        if _has_e4m3(session.device):
            _e4m3(session, name, x, weight, flops)
        else:
            session.skip(f"{name}, e4m3", "needs compute capability 8.9")


def _copy(session: Session) -> None:
    source = torch.empty(session.pick(1 << 30, 1 << 12), dtype=torch.uint8, device=session.device)
    target = torch.empty_like(source)
    seconds = session.seconds(lambda: target.copy_(source), flush=False)
    session.report("copy", bytes=2 * source.nbytes, seconds=seconds)


def _e4m3(session: Session, name: str, x: torch.Tensor, weight: torch.Tensor, flops: int) -> None:
    """With a scale per row and one per column, as fp8 linears have them; sums in fp32, or with fewer bits."""
    (a, a_scale), (b, b_scale) = _quantized(x), _quantized(weight)
    truth = (a[:CHECKED].double() * a_scale[:CHECKED]) @ (b.double() * b_scale).t()
    product = partial(torch._scaled_mm, a, b.t(), a_scale, b_scale.t(), out_dtype=torch.bfloat16)
    for fast in (True, False):
        time_kernel(
            session,
            f"{name}, e4m3, {'fast' if fast else 'exact'} sums",
            partial(product, use_fast_accum=fast),
            truth,
            quantized=torch.float8_e4m3fn if fast else None,
            read=_some,
            flops=flops,
        )


def _some(y: torch.Tensor) -> torch.Tensor:
    return y[:CHECKED]


def _quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x in e4m3 and a scale per row."""
    scale = x.float().abs().amax(dim=1, keepdim=True) / 448.0
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def _has_e4m3(device: torch.device) -> bool:
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


QUESTION = Question(
    decides="what every other speed is a share of: copy bandwidth, cuBLAS in bf16, and e4m3 with fast and exact sums",
    serves="linear, and the shares in every table",
    value=9,
    seconds=12,
    ask=ask,
)
