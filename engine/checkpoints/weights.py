"""Named tensors of one component: what a model is built from, whether they lie in files or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch

from kinema.checkpoints.table import Table, TensorTable
from kinema.errors import CheckpointError, listed
from kinema.ops.common import Storage

Shapes = Mapping[str, tuple[int, ...]]


class Stored(tuple[int, ...]):
    """The shape of a model's tensor and how the model stores it, which nothing else records.

    Packing, memory prediction, random models and training read it.
    """

    storage: Storage

    def __new__(cls, shape: Iterable[int], storage: Storage = "fp32") -> Stored:
        stored = super().__new__(cls, shape)
        stored.storage = storage
        return stored


Tensors = dict[str, Stored]


@runtime_checkable
class StoredTensors(Protocol):
    """A mapping over files, which can also give a matrix without reading it."""

    def table(self, name: str) -> Table: ...


class Weights:
    """Tensors by name, below a prefix.

    Over files, `weights[name]` reads a fresh copy, so a model that packs one by one holds one spare tensor at a time,
    and fp64 is read as fp32, the most that a model computes in. Over a dict (training, tests) it is the tensor
    itself.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], prefix: str = "", stored: Mapping[str, Stored] | None = None
    ) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._stored = stored or {}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[self._prefix + name]
        stored_as_fp64 = tensor.dtype == torch.float64 and isinstance(self._tensors, StoredTensors)
        return tensor.float() if stored_as_fp64 else tensor

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def get(self, name: str) -> torch.Tensor | None:
        return self[name] if name in self else None  # noqa: SIM401

    def sub(self, prefix: str) -> Weights:
        """The tensors whose names begin with `prefix` and a dot."""
        return Weights(self._tensors, f"{self._prefix}{prefix}.", self._stored)

    def kept(self, stored: Mapping[str, Stored]) -> Weights:
        """The same tensors; stored: says how each is kept, for `storage`."""
        return Weights(self._tensors, self._prefix, stored)

    def storage(self, name: str) -> Storage:
        """How a matrix is kept: as planned, unless the model says otherwise."""
        stored = self._stored.get(self._prefix + name)
        return "planned" if stored is None else stored.storage

    def table(self, name: str) -> Table:
        """A matrix of which a run reads a few rows; over files it stays on disk."""
        if isinstance(self._tensors, StoredTensors):
            return self._tensors.table(self._prefix + name)
        return TensorTable(self[name])


def check_shapes(expected: Shapes, found: Shapes, where: str) -> None:
    """Raise one CheckpointError that names missing, mis-shaped and surplus tensors of a component, and counts them."""
    missing = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    wrong = [
        f"mis-shaped {name}: got {found[name]}, wanted {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    surplus = [f"surplus {name} {shape}" for name, shape in found.items() if name not in expected]
    kinds = [kind for kind in (missing, wrong, surplus) if kind]
    if kinds:
        raise CheckpointError(
            f"{where} does not match its config.json ({sum(map(len, kinds))} tensors): "
            + "; ".join(listed(kind, "; ", most=25) for kind in kinds)
        )
