"""The few numeric conventions every reference follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FP8_MAX = 448.0  # largest finite float8_e4m3fn
INT8_MAX = 127.0


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that statistics are taken in: fp32, or fp64 if x is fp64 (the tests' truth)."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def claim(
    out: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, contiguous: int = 1
) -> torch.Tensor:
    """The buffer a kernel writes into: the caller's `out`, or a new one.

    contiguous: how many of the last axes a kernel takes to be dense.
    """
    if out is None:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    if out.shape != tuple(shape) or out.dtype != dtype:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}, the op writes {dtype} {tuple(shape)}")
    dense = 1
    for size, stride in reversed(list(zip(out.shape, out.stride(), strict=True))[len(shape) - contiguous :]):
        if size != 1 and stride != dense:
            raise ValueError(f"out has strides {out.stride()}, wanted its last {contiguous} axes dense")
        dense *= size
    return out


def deliver(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """`result`, written into `out` if the caller owns the output buffer."""
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype:
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)}, the op writes {result.dtype} {tuple(result.shape)}"
        )
    return out.copy_(result)
