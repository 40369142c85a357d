"""The few numeric conventions every reference follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FP8_MAX = 448.0  # largest finite float8_e4m3fn
INT8_MAX = 127.0


def upcast(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that statistics are computed in: fp32, or fp64 if x is fp64 (the tests' truth)."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def dense(t: torch.Tensor | None) -> torch.Tensor | None:
    """t with its last axis contiguous: t itself if it already is."""
    return t if t is None or t.stride()[-1] == 1 or t.shape[-1] == 1 else t.contiguous()


def output_buffer(
    out: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, contiguous: int = 1
) -> torch.Tensor:
    """The buffer that a kernel writes into: the caller's `out`, of this shape and dtype, or a new one.

    contiguous: how many of the last axes the kernel assumes to be dense.
    """
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if out.is_contiguous():
        return out
    wanted = 1
    for size, stride in reversed(list(zip(out.shape, out.stride(), strict=True))[len(shape) - contiguous :]):
        if size != 1 and stride != wanted:
            raise ValueError(f"out has strides {out.stride()}, wanted its last {contiguous} axes dense")
        wanted *= size
    return out


def write_result(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """`result`, written into `out` if the caller owns the output buffer."""
    return result if out is None else out.copy_(result)
