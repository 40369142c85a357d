"""conv3d: a video VAE's causal convolution, with the norm and activation before it and the resampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from kinema.ops.common import Implementation, Op, Packed, Target
from kinema.ops.common.native import cpu_implementation, cpu_unsupported
from kinema.ops.common.triton_target import triton_implementation


@dataclass(frozen=True)
class Conv3dWeight(Packed):
    """A kernel in the layout of the implementation that packed it, on `device`; opaque to models."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int, int]
    device: torch.device

    @property
    def history(self) -> int:
        """Past frames that a streamed convolution keeps: kernel − stride along time."""
        return max(self.kernel[0] - self.stride[0], 0)


class PackConv3d(Protocol):
    def __call__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int, int] | None = None,
        target: Target,
    ) -> Conv3dWeight:
        """weight: [Cout, Cin, kt, kh, kw], or [Cout, Cin, kh, kw] for a frame-by-frame convolution; bias: [Cout].

        padding: zeros at (top, bottom, left, right); None pads "same", (k − 1)/2 on each side.
        """
        ...


class Conv3d(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        weight: Conv3dWeight,
        *,
        norm: torch.Tensor | None = None,
        activation: Literal["none", "silu"] = "none",
        upsample: int = 1,
        cache: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """y = conv(past frames ++ upsample(act(norm(x)))) + bias + residual.

        x: [B, Cin, T, H, W], any strides (a channels-last tensor stays so). T may be 0: the result has no frames, and
        the cache stays. H and W are at least 1, and no smaller than the kernel when they are upsampled and padded.
        norm: [Cin], the weight of x/max(‖x‖₂ over channels, 1e-12)·√Cin·weight. upsample: nearest, over H and W.
        cache: [B, Cin, history, H, W] (after upsampling, if any), the frames before x as this convolution saw
        them; read, then overwritten with the last `history` frames, so that a clip in chunks equals the
        clip at once. Zeros start a clip. Without a cache the past is zero, unless there is no history.
        residual, out: y's shape; `out` may be `residual` itself, but shares no memory with x or the cache.
        Sums in fp32. Returns [B, Cout, T', H', W'] in x's dtype.
        """
        ...


OP = Op(
    "conv3d",
    ("conv3d", "pack_conv3d"),
    (
        triton_implementation("conv3d"),
        cpu_implementation("conv3d"),
        Implementation("cpu-direct", "kinema.ops.conv3d.cpu_direct", cpu_unsupported),
        Implementation("reference", "kinema.ops.conv3d.reference"),
    ),
)
