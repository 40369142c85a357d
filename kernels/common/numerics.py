"""The few numeric conventions every reference follows."""

from __future__ import annotations

import torch

FP8_MAX = 448.0  # largest finite float8_e4m3fn
INT8_MAX = 127.0


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that statistics are taken in: fp32, or fp64 if x is fp64 (the tests' truth)."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def deliver(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """`result`, written into `out` if the caller owns the output buffer."""
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype:
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)}, the op writes {result.dtype} {tuple(result.shape)}"
        )
    return out.copy_(result)
