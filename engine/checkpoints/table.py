"""A matrix of which a run reads a few rows: a vocabulary's embeddings, which are gigabytes in large models."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import embedding


class Table(Protocol):
    """shape: (R, C)."""

    shape: tuple[int, ...]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows at ids [...], 0 to R − 1: [..., C] in the stored dtype. CheckpointError if they cannot be read."""
        ...


class TensorTable:
    """A table in memory, whose rows carry gradients."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return embedding(ids.to(self.tensor.device), self.tensor)
