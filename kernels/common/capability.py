"""Which implementations of an op can run where, and why the others cannot."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from kinema.ops.common.precision import Precision
from kinema.ops.common.quantized import QuantKind


@dataclass(frozen=True)
class Target:
    """Where a model is to run, and in which precision. The plan asks every implementation about it once."""

    device: torch.device
    precision: Precision


def no_reason(target: Target) -> list[str]:
    """Plain PyTorch runs wherever PyTorch does."""
    return []


def no_eight_bits(target: Target, kind: QuantKind) -> list[str]:
    return [f"does not multiply in {kind}"]


def between_ops(target: Target) -> torch.dtype:
    return target.precision.activations


@dataclass(frozen=True)
class Implementation:
    """One way to run an op.

    module: import path of the file that holds the op's functions; imported only if it is chosen.
    unsupported: the reasons why it cannot run on a target; an empty list means that it can.
    not_preferred: the reasons why it runs there only when it is asked for by name.
    partial: supports only the common calls of the contract; the others go to `fallback_for(op, target)`.
    quantizes: the reasons why it has no kernel for calls that quantize to a kind; asked of attention only.
    operands: the dtype that a model gives it queries and keys in; asked of attention only.
    """

    backend: str
    module: str
    unsupported: Callable[[Target], list[str]] = no_reason
    not_preferred: Callable[[Target], list[str]] = no_reason
    partial: bool = False
    quantizes: Callable[[Target, QuantKind], list[str]] = no_eight_bits
    operands: Callable[[Target], torch.dtype] = between_ops

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


@dataclass(frozen=True)
class Op:
    """An op: its name, the functions of its contract, and its implementations, best first.

    result: what a call returns, as empty memory; of the op's arguments, whose shapes may be symbols. torch.compile
    traces it in the op's place; None: it cannot trace the op.
    """

    name: str
    functions: tuple[str, ...]
    implementations: tuple[Implementation, ...]
    result: Callable[..., Any] | None = None


def fallback_for(op: Op, target: Target) -> Implementation:
    """What runs the calls that a partial implementation does not support: the best of those that support all."""
    for implementation in op.implementations:
        if not (implementation.partial or implementation.unsupported(target) or implementation.not_preferred(target)):
            return implementation
    raise AssertionError(f"{op.name} has no reference")
