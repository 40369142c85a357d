"""Ops whose calls torch.compile takes whole: each is one opaque operator of torch.library, which its graphs show.

Eager code calls the implementations directly and pays nothing. What an operator takes and what is traced in its place
follow the op's contract, which is written down in its own file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import count
from typing import Any, get_args, get_origin, get_type_hints
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.library import custom_op

from kinema.ops.flat import flattener, rebuilder
from kinema.ops.plan import OPS
from kinema.ops.table import Ops

_numbers = count()
_functions: WeakValueDictionary[int, Callable[..., Any]] = WeakValueDictionary()


class Operator:
    """kinema::<name>. result: of a call, as empty memory; it is traced in the op's place."""

    def __init__(self, name: str, contract: Any, result: Callable[..., Any]) -> None:
        self.flatten, rebuild = flattener(contract), rebuilder(contract)
        self.returned = _returned(get_type_hints(contract.__call__)["return"])

        def run(
            function: int, words: str, tensors: Sequence[Tensor | None], ints: Sequence[int], floats: Sequence[float]
        ) -> list[Tensor]:
            return _apart(_tensors(_functions[function](**rebuild(words, tensors, ints, floats))), tensors)

        def traced(function: int, *parts: Any) -> list[Tensor]:
            return _tensors(result(**rebuild(*parts)))

        self.run = custom_op(f"kinema::{name}", run, mutates_args=())
        self.run.register_fake(traced)


def compilable(ops: Ops) -> Ops:
    """The same ops, whose calls become operators while torch.compile traces. `out=` is for eager code only."""
    return replace(ops, **{name: _compilable(getattr(ops, name), operator) for name, operator in OPERATORS.items()})


def _compilable(function: Callable[..., Any], operator: Operator) -> Any:
    number, flatten, run, returned = next(_numbers), operator.flatten, operator.run, operator.returned
    _functions[number] = function  # which lives as long as `call` does

    def call(*args: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*args, **options)
        return returned(run(number, *flatten(*args, **options)))

    return call


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result) if isinstance(result, tuple) else [getattr(result, field.name) for field in fields(result)]


def _returned(hint: Any) -> Callable[[list[Tensor]], Any]:
    """From these tensors to what a contract returns, by its annotation."""
    if get_origin(hint) is tuple:
        return tuple
    record: Any = next(filter(is_dataclass, get_args(hint)), None)
    return lambda tensors: tensors[0] if len(tensors) == 1 else record(*tensors)


def _apart(results: list[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
    """The results, each in memory of its own, which an operator's must have: a view is copied."""
    places = {t.untyped_storage().data_ptr() for t in given if t is not None}
    apart = []
    for t in results:
        place = t.untyped_storage().data_ptr()
        apart.append(t.clone() if place in places else t)
        places.add(place)
    return apart


_CONTRACTS = get_type_hints(Ops)
OPERATORS = {op.name: Operator(op.name, _CONTRACTS[op.name], op.result) for op in OPS if op.result is not None}
