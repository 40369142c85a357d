"""Layers that the transformers and encoders of every family share."""

from __future__ import annotations

import math

import torch

from kinema.buffers.activations import ActivationBuffers
from kinema.checkpoints.weights import Weights
from kinema.ops import Ops
from kinema.ops.linear import Activation, LinearWeight
from kinema.ops.norm_modulate import Norm


def pack_linear(weights: Weights, name: str, ops: Ops) -> LinearWeight:
    """Pack `name.weight`, as the model keeps it, and, if it is there, `name.bias`."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    return ops.pack_linear(weights[weight], weights.get(bias), storage=weights.storage(weight))


def sinusoid(timesteps: torch.Tensor, channels: int) -> torch.Tensor:
    """Timesteps as cosines, then sines, of geometrically spaced frequencies: 10000^(−i/(channels/2)).

    timesteps: any shape, steps of 0 to 1000. Returns [..., channels] fp32. Ho et al. 2020, arXiv 2006.11239.
    """
    half = channels // 2
    rate = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angle = timesteps.float().unsqueeze(-1) * rate
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Mlp:
    """Two linears with an activation between them."""

    def __init__(self, weights: Weights, names: tuple[str, str], activation: Activation, ops: Ops) -> None:
        self.ops = ops
        self.activation = activation
        self.up = pack_linear(weights, names[0], ops)
        self.down = pack_linear(weights, names[1], ops)

    def __call__(self, x: torch.Tensor, *, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x: [B, S, in] → residual + mlp(x), [B, S, out]."""
        return self.ops.linear(self.ops.linear(x, self.up, activation=self.activation), self.down, residual=residual)

    def onto(self, x: torch.Tensor, norm: Norm, gate: torch.Tensor, buffers: ActivationBuffers) -> torch.Tensor:
        """x + gate · mlp(norm(x)), [B, S, C], in x's memory; the buffer "wide" is overwritten."""
        wide = buffers.get("wide", (*x.shape[:2], self.up.out_features), x)
        hidden = self.ops.linear(x, self.up, norm=norm, activation=self.activation, out=wide)
        return self.ops.linear(hidden, self.down, gate=gate, residual=x, out=buffers.in_place(x))
