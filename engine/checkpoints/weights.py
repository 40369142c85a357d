"""Named tensors of one component: what a model is built from, whether they lie in files or in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch

from kinema.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


@runtime_checkable
class MappedTensors(Protocol):
    """A mapping that can also give a tensor without copying it out of its file."""

    def mapped(self, name: str) -> torch.Tensor: ...


class Weights:
    """Tensors by name, below a prefix.

    Over files, `weights[name]` copies one tensor out of its memory map, so a model that packs one by one
    holds one spare tensor at a time. Over a dict (training, tests) it is the tensor itself.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def get(self, name: str) -> torch.Tensor | None:
        return self[name] if name in self else None  # noqa: SIM401

    def sub(self, prefix: str) -> Weights:
        """The tensors whose names begin with `prefix` and a dot."""
        return Weights(self._tensors, f"{self._prefix}{prefix}.")

    def mapped(self, name: str) -> torch.Tensor:
        """The tensor where it lies, read-only: for tables of which a run touches a few rows."""
        if isinstance(self._tensors, MappedTensors):
            return self._tensors.mapped(self._prefix + name)
        return self[name]


def check_shapes(expected: Shapes, found: Shapes, where: str) -> None:
    """Raise one CheckpointError that names every missing, surplus and mis-shaped tensor of a component."""
    missing = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    surplus = [f"surplus {name} {shape}" for name, shape in found.items() if name not in expected]
    wrong = [
        f"mis-shaped {name}: got {found[name]}, wanted {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [*missing, *wrong, *surplus]
    if problems:
        raise CheckpointError(
            f"{where} does not match its config.json ({len(problems)} tensors): " + "; ".join(problems)
        )
