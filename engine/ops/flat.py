"""A contract's arguments as what an operator of torch.library takes, and back: words, tensors, ints and floats.

All of it follows the annotations of a contract and of its records. Words say what cannot change without new code: which
member of a union a value is, how long a tuple is, the options. Numbers are apart, so that one that changes from call to
call (where a rotation starts, a grid) becomes a symbol of compiled code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from kinema.ops.common import Packed

Flat = tuple[str, list[Tensor | None], list[int], list[float]]
Parts = dict[str, Iterator[Any]]  # of the words and of each list


def flattener(contract: Any) -> Callable[..., Flat]:
    """A function of the contract's signature; `out=` is refused.

    It is written out as a dataclass's __init__ is: torch.compile traces it at every call of an op, and one that looks
    at values as it goes takes it several times as long.
    """
    signature: list[str] = []
    lines = ["words, tensors, ints, floats = '', [], [], []"]
    known: dict[str, Any] = {"Tensor": Tensor, "dtype": torch.dtype}
    for parameter, hint in _parameters(contract):
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in signature:
            signature.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        signature.append(parameter.name + default)
        lines += _lines(parameter.name, hint, known)
    lines += ["if out is not None:", " raise ValueError('compiled code has no out=: call the op without it')"]
    source = [f"def flat({', '.join(signature)}, out=None):", *lines, "return words, tensors, ints, floats"]
    exec("\n ".join(source), known)
    flat: Callable[..., Flat] = known["flat"]
    return flat


def rebuilder(contract: Any) -> Callable[..., dict[str, Any]]:
    """From the words, tensors, ints and floats of a call to its arguments by name."""
    makes = {parameter.name: _make(hint) for parameter, hint in _parameters(contract)}

    def rebuild(words: str, tensors: Any, ints: Any, floats: Any) -> dict[str, Any]:
        lists = {"words": words.split(), "tensors": tensors, "ints": ints, "floats": floats}
        parts = {name: iter(values) for name, values in lists.items()}
        return {name: make(parts) for name, make in makes.items()}

    return rebuild


def _parameters(contract: Any) -> list[tuple[inspect.Parameter, Any]]:
    hints = get_type_hints(contract.__call__)
    given = inspect.signature(contract.__call__).parameters.values()
    return [(p, hints[p.name]) for p in given if p.name not in ("self", "out")]


def _members(hint: Any) -> list[Any]:
    """Of a union, None first; else of any annotation, itself. A tensor may be None without being a union."""
    if get_origin(hint) not in (Union, UnionType) or _list(hint):
        return [hint]
    return sorted(get_args(hint), key=lambda member: member is not NoneType)


def _list(hint: Any) -> str | None:
    """Where values of this annotation go as they are."""
    return {int: "ints", float: "floats", Tensor: "tensors", Tensor | None: "tensors"}.get(hint)


def _inner(hint: Any) -> dict[str, Any]:
    """What a record or a tuple of fixed length is made of: what is written behind its name, and the annotation."""
    if get_origin(hint) is tuple:
        return {f"[{number}]": inner for number, inner in enumerate(get_args(hint))}
    hints = get_type_hints(hint)
    return {f".{field.name}": hints[field.name] for field in fields(hint)}


def _lines(value: str, hint: Any, known: dict[str, Any]) -> list[str]:
    """What takes an expression of this annotation apart. known: the names that the lines use."""
    members = _members(hint)
    if len(members) > 1:
        lines: list[str] = []
        for number, member in enumerate(members):
            kind = get_origin(member) or member
            test = f"{value} is None" if member is NoneType else f"isinstance({value}, {kind.__name__})"
            lines.append("else:" if number == len(members) - 1 else f"{'elif' if lines else 'if'} {test}:")
            lines += [f" {line}" for line in (f"words += ' {number}'", *_lines(value, member, known))]
        return lines
    if (name := _list(hint)) is not None:
        return [f"{name}.append({value})"]
    if hint in (bool, torch.dtype) or get_origin(hint) is Literal:
        return [f"words += f' {{{value}}}'"]
    if get_origin(hint) is tuple and ... in get_args(hint):
        part = f"{value.replace('.', '_')}_part"
        loop = [f" {line}" for line in _lines(part, get_args(hint)[0], known)]
        return [f"words += f' {{len({value})}}'", f"for {part} in {value}:", *loop]
    if isinstance(hint, type) and is_dataclass(hint):
        known[hint.__name__] = hint
        if issubclass(hint, Packed):
            return [f"ints.append({value}.number)"]
    elif hint is not NoneType and get_origin(hint) is not tuple:
        raise TypeError(f"{value} is {hint}, which compiled code does not know")
    inner = {} if hint is NoneType else _inner(hint)
    return [line for place, part in inner.items() for line in _lines(value + place, part, known)]


def _make(hint: Any) -> Callable[[Parts], Any]:
    """What puts a value of this annotation together again, in the order of the lines."""
    members = _members(hint)
    if len(members) > 1:
        made = {str(number): _make(member) for number, member in enumerate(members)}
        return lambda parts: made[next(parts["words"])](parts)
    if hint is NoneType:
        return lambda parts: None
    if (name := _list(hint)) is not None:
        return lambda parts: next(parts[name])
    if hint is bool:
        return lambda parts: next(parts["words"]) == "True"
    if get_origin(hint) is Literal:
        return lambda parts: next(parts["words"])
    if hint is torch.dtype:
        return lambda parts: getattr(torch, next(parts["words"]).removeprefix("torch."))
    if get_origin(hint) is tuple and ... in get_args(hint):
        each = _make(get_args(hint)[0])
        return lambda parts: tuple([each(parts) for _ in range(int(next(parts["words"])))])
    if isinstance(hint, type) and issubclass(hint, Packed):
        return lambda parts: Packed.numbered(int(next(parts["ints"])))  # of a symbol, the number that it has here
    inner = [_make(part) for part in _inner(hint).values()]
    if get_origin(hint) is tuple:
        return lambda parts: tuple([each(parts) for each in inner])
    return lambda parts: hint(*[each(parts) for each in inner])
