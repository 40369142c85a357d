"""Random tensors drawn on the device: drawing gigabytes on the host would take longer than a question has."""

from __future__ import annotations

import hashlib

import torch

from kinema.bench.gate import ExactInputs
from kinema.bench.random_model import RandomTensors, is_norm, standard_deviation
from kinema.checkpoints.weights import Shapes, Weights
from kinema.ops.calls import Inputs
from kinema.ops.common import PRECISIONS, Target


class Drawn(Inputs):
    """`Inputs` drawn on the device."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        super().__init__(device, seed)
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float32, device=self.device).to(dtype)


class ExactDrawn(ExactInputs, Drawn):
    """The same numbers in float64, for the reference to compute the truth."""


class _DrawnTensors(RandomTensors):
    """A random model's tensors, drawn on a device."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, seed: int, device: torch.device) -> None:
        super().__init__(shapes, dtype, seed)
        self._device = device

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        if is_norm(name, shape):
            return tensor.uniform_(0.5, 1.5, generator=generator)
        return tensor.normal_(0.0, standard_deviation(name, shape, self._d_kv), generator=generator)


def drawn_weights(
    shapes: Shapes, device: torch.device, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Weights:
    """A random model's weights; each tensor is drawn at every access, from its own seed, so always the same."""
    return Weights(_DrawnTensors(shapes, dtype, seed, device))


def flowing(device: torch.device, name: str = "bf16") -> Target:
    """A GPU's precision of this name, also in a dry run, where Triton is interpreted in it."""
    return Target(device, PRECISIONS["cuda"][name])
