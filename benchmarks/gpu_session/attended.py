"""Self-attention at the sizes of a video, and the truth for some of its queries: for all it would take terabytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kinema.bench.gpu_session.drawn import Drawn
from kinema.bench.gpu_session.kernels import time_kernel
from kinema.bench.gpu_session.question import Session
from kinema.ops.attention import KV
from kinema.ops.attention.reference import attention as plain_attention
from kinema.ops.common import QuantKind

SIZES = {"32760 tokens, 12 heads": (32760, 12), "75600 tokens, 8 heads": (75600, 8)}
SMALL = {"34 tokens, 1 head": (34, 1)}
CHECKED = 64  # queries


@dataclass(frozen=True)
class Attended:
    """q, k, v [1, N, S, D] in bf16, laid out as in Wan's block: v is a slice of the fused projection.

    truth: of the queries `rows`, [1, CHECKED, N·D] in float64; plain: the same by plain PyTorch in bf16, or quantized.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rows: torch.Tensor
    truth: torch.Tensor
    plain: torch.Tensor

    @property
    def flops(self) -> int:
        _, heads, tokens, head_dim = self.q.shape
        return 4 * heads * tokens**2 * head_dim

    def kinema(self, attention: Callable[..., Any], **options: Any) -> Callable[[], torch.Tensor]:
        """A call of an implementation of the op; its result [1, S, N·D]."""
        call = partial(attention, self.q, KV(self.k, self.v), **options)
        return lambda: call()[0]

    def sdpa(self) -> Callable[[], torch.Tensor]:
        """The same by torch's scaled_dot_product_attention, laid out as the next projection reads it."""
        return lambda: F.scaled_dot_product_attention(self.q, self.k, self.v).transpose(1, 2).flatten(2)

    def time(
        self,
        session: Session,
        case: str,
        call: Callable[[], torch.Tensor],
        quantized: torch.dtype | None = None,
        read: Callable[[torch.Tensor], torch.Tensor] = lambda y: y,
        **fields: Any,
    ) -> None:
        """`time_kernel`, with a check of some queries only."""
        time_kernel(
            session,
            case,
            call,
            self.truth,
            plain=self.plain,
            quantized=quantized,
            read=lambda y: read(y[:, self.rows]),
            flops=self.flops,
            **fields,
        )


def attended(session: Session, tokens: int, heads: int, quantize: QuantKind | None = None) -> Attended:
    new, head_dim = Drawn(session.device), session.pick(128, 32)
    q, k = (new(1, heads, tokens, head_dim, dtype=torch.bfloat16) for _ in range(2))
    v = new(1, tokens, 3, heads, head_dim, dtype=torch.bfloat16)[:, :, 2].transpose(1, 2)
    rows = torch.linspace(0, tokens - 1, min(CHECKED, tokens), dtype=torch.float32, device=session.device).long()
    some = q[:, :, rows]
    truth = plain_attention(some.double(), KV(k.double(), v.double()))[0]
    return Attended(q, k, v, rows, truth, plain_attention(some, KV(k, v), quantize=quantize)[0])


def sizes(session: Session) -> dict[str, tuple[int, int]]:
    return session.pick(SIZES, SMALL)
