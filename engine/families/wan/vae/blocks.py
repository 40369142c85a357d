"""The causal convolution and the blocks that the encoder and the decoder share.

Activations are [B, C, T, H, W] in channels-last memory, so that a frame's positions are its tokens and a norm
over channels reads neighbours.
"""

from __future__ import annotations

import torch

from kinema.checkpoints.weights import Stored, Tensors, Weights
from kinema.ops import Ops
from kinema.ops.attention import KV
from kinema.ops.common import Storage
from kinema.vae.feature_cache import FeatureCache


def conv_shapes(name: str, out: int, into: int, *kernel: int, storage: Storage = "convolution") -> Tensors:
    return {f"{name}.weight": Stored((out, into, *kernel), storage), f"{name}.bias": Stored((out,))}


def norm_gain(weights: Weights, name: str, ops: Ops) -> torch.Tensor:
    """`name.gamma` as [C], at least fp32."""
    gamma = weights[f"{name}.gamma"].flatten()
    return gamma.to(ops.device, torch.promote_types(gamma.dtype, torch.float32))


class CausalConv:
    """A convolution that sees the frames so far; with `norm`, after RMSNorm and SiLU."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        ops: Ops,
        *,
        norm: str | None = None,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int, int] | None = None,
        upsample: int = 1,
    ) -> None:
        self.name = name
        self.ops = ops
        self.weight = ops.pack_conv3d(
            weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=padding
        )
        self.gain = norm_gain(weights, norm, ops) if norm is not None else None
        self.upsample = upsample
        # the reference op would allocate its result and copy it
        self.uses_buffers = ops.plan.backend("conv3d") != "reference"

    def __call__(
        self,
        x: torch.Tensor,
        cache: FeatureCache,
        *,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x: [B, Cin, T, H, W] → [B, Cout, T', H', W'], in `out` if it is given, which may be the residual."""
        return self.ops.conv3d(
            x,
            self.weight,
            norm=self.gain,
            activation="none" if self.gain is None else "silu",
            upsample=self.upsample,
            cache=self.past(x, cache) if self.weight.history else None,
            residual=residual,
            out=out,
        )

    def buffer(self, x: torch.Tensor, cache: FeatureCache, name: str) -> torch.Tensor | None:
        """A buffer for the result of x, if the convolution changes no size except by `upsample`."""
        if not self.uses_buffers:
            return None
        batch, _, frames, height, width = x.shape
        shape = (batch, frames, height * self.upsample, width * self.upsample, self.weight.out_channels)
        flat = cache.buffers.get(name, shape, x)
        return flat.movedim(-1, 1) if flat is not None else None

    def past(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor | None:
        """The frames before x, to be read and overwritten; None stands for zeros that are not needed afterwards."""
        return cache.past(self.name, x, self.weight.history)


class ResidualBlock:
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))."""

    def __init__(self, weights: Weights, name: str, ops: Ops) -> None:
        self.conv1 = CausalConv(weights, f"{name}.conv1", ops, norm=f"{name}.norm1")
        self.conv2 = CausalConv(weights, f"{name}.conv2", ops, norm=f"{name}.norm2")
        changes_channels = self.conv1.weight.in_channels != self.conv1.weight.out_channels
        self.shortcut = CausalConv(weights, f"{name}.conv_shortcut", ops) if changes_channels else None

    @staticmethod
    def shapes(name: str, into: int, out: int) -> Tensors:
        shapes: Tensors = {
            f"{name}.norm1.gamma": Stored((into, 1, 1, 1)),
            f"{name}.norm2.gamma": Stored((out, 1, 1, 1)),
        }
        shapes |= conv_shapes(f"{name}.conv1", out, into, 3, 3, 3) | conv_shapes(f"{name}.conv2", out, out, 3, 3, 3)
        return shapes if into == out else shapes | conv_shapes(f"{name}.conv_shortcut", out, into, 1, 1, 1)

    def __call__(self, x: torch.Tensor, cache: FeatureCache, *, in_place: bool = False) -> torch.Tensor:
        """x: [B, C, T, H, W] → [B, C', T, H, W]. in_place: the result may overwrite x (never under autograd)."""
        shortcut = x if self.shortcut is None else self.shortcut(x, cache)
        h = self.conv1(x, cache, out=self.conv1.buffer(x, cache, "hidden"))
        may = self.conv2.uses_buffers and (in_place or shortcut is not x)
        out = cache.buffers.in_place(shortcut) if may else None
        return self.conv2(h, cache, residual=shortcut, out=out)


class AttentionBlock:
    """Single-head self-attention over the positions of each frame."""

    def __init__(self, weights: Weights, name: str, ops: Ops) -> None:
        self.ops = ops
        self.gain = norm_gain(weights, f"{name}.norm", ops)
        self.to_qkv, self.proj = (
            ops.pack_linear(
                weights[f"{name}.{part}.weight"].flatten(1), weights[f"{name}.{part}.bias"], storage="exact"
            )
            for part in ("to_qkv", "proj")
        )

    @staticmethod
    def shapes(name: str, channels: int) -> Tensors:
        norm: Tensors = {f"{name}.norm.gamma": Stored((channels, 1, 1))}
        qkv = conv_shapes(f"{name}.to_qkv", 3 * channels, channels, 1, 1, storage="exact")
        return norm | qkv | conv_shapes(f"{name}.proj", channels, channels, 1, 1, storage="exact")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, T, H, W] → the same."""
        batch, channels, frames, height, width = x.shape
        tokens = x.movedim(1, -1).reshape(batch * frames, height * width, channels)
        # this eps is the published norm's max(‖x‖, 1e-12), as far as fp32 can tell
        h = self.ops.norm_modulate(tokens, norm="rms", eps=1e-24 / channels, weight=self.gain)
        q, k, v = self.ops.linear(h, self.to_qkv).unsqueeze(1).chunk(3, dim=-1)
        (h,) = self.ops.attention(q, KV(k, v))
        h = self.ops.linear(h, self.proj, residual=tokens)
        return h.view(batch, frames, height, width, channels).movedim(-1, 1)


class MidBlock:
    """Residual block, attention, residual block."""

    def __init__(self, weights: Weights, name: str, ops: Ops) -> None:
        self.before = ResidualBlock(weights, f"{name}.resnets.0", ops)
        self.attention = AttentionBlock(weights, f"{name}.attentions.0", ops)
        self.after = ResidualBlock(weights, f"{name}.resnets.1", ops)

    @staticmethod
    def shapes(name: str, channels: int) -> Tensors:
        blocks = (ResidualBlock.shapes(f"{name}.resnets.{i}", channels, channels) for i in range(2))
        return next(blocks) | AttentionBlock.shapes(f"{name}.attentions.0", channels) | next(blocks)

    def __call__(self, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
        return self.after(self.attention(self.before(x, cache)), cache)
