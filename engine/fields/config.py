"""Reading a component's config.json into a frozen dataclass, whose annotations say what each value may be.

An annotation is a kind (`bool`, `int`, `float`, `str`, a `Literal` of choices, a `tuple` of these, `| None`), with its
limits in `Annotated`: `Annotated[int, Range(1, 1000)]`. A value of another kind or out of range is a CheckpointError
here, so that nothing after it need check again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kinema.errors import CheckpointError, listed, shown

T = TypeVar("T")


class JsonObject(dict[str, Any]):
    """A JSON object that remembers which file it was read from, for messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def origin(config: object, otherwise: str) -> str:
    """The file that a config was read from."""
    return config.where if isinstance(config, JsonObject) else otherwise


@dataclass(frozen=True)
class Range:
    """Limits of a number, or of every number in a tuple. Both are inclusive, except `low` where `open`."""

    low: float
    high: float
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high


@dataclass(frozen=True)
class Length:
    """How many values a tuple of variable length may have, or characters a string."""

    least: int
    most: int


# Shared by several configs: channels or matrix rows; layers; the epsilon of a norm.
Size = Annotated[int, Range(1, 10**7)]
Layers = Annotated[int, Range(1, 1000)]
Epsilon = Annotated[float, Range(0.0, 1.0)]

_ANY_NUMBER = Range(-sys.float_info.max, sys.float_info.max)
_ANY_LENGTH = Length(0, 10**6)


def from_config(
    cls: type[T],
    config: Mapping[str, Any],
    *,
    ignore: frozenset[str] = frozenset(),
    only_known: bool = True,
    null_is_default: bool = False,
) -> T:
    """Build the dataclass `cls` from a diffusers or transformers config.

    Lists become tuples, and integers floats, where those are wanted. Keys that start with "_" or are in `ignore` are
    skipped, and with `null_is_default` those that are null. With `only_known`, a key that the dataclass does not know
    is an error unless it is null: an option that is silently dropped gives wrong videos. CheckpointError names the
    file, each key that is wrong, what it is and what was wanted.
    """
    assert is_dataclass(cls)
    where = origin(config, cls.__name__)
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where} is {shown(config)}: wanted an object of names and values")
    hints, values, wrong, unknown = _hints(cls), {}, [], []
    for key, value in config.items():
        if value is None and null_is_default:
            continue
        if key in hints:
            try:
                values[key] = read_value(value, hints[key])
            except ValueError:
                wrong.append(f"{key} is {shown(value)}, wanted {described(hints[key])}")
        elif not str(key).startswith("_") and key not in ignore and value is not None:
            unknown.append(f"{key}={shown(value)}")
    if wrong:
        raise CheckpointError(f"{where}: {listed(wrong, '; ', 10)}")
    if unknown and only_known:
        raise CheckpointError(
            f"{where}: {cls.__name__} does not know {listed(unknown, ', ', 10)}: this version of kinema cannot honour "
            "these options"
        )
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}")
    try:
        return cls(**values)
    except CheckpointError as error:  # values that contradict each other
        raise CheckpointError(f"{where}: {error}") from error


@lru_cache(maxsize=64)
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def read_value(value: Any, hint: Any, limits: tuple[Any, ...] = ()) -> Any:
    """`value` converted to what the annotation `hint` wants, or ValueError."""
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, in configs of diffusers' objects
        value = value.tolist()
    arms, limits = _arms(hint, limits)
    if len(arms) > 1:
        for arm in arms:
            try:
                return read_value(value, arm, limits)
            except ValueError:
                continue
        raise ValueError
    (kind,) = arms
    if get_origin(kind) is tuple:
        return _tuple_value(value, get_args(kind), limits)
    if get_origin(kind) is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    elif kind in (int, float):
        # JSON's true is a Python integer; a NaN is in no range
        fits = type(value) in ((int,) if kind is int else (int, float)) and value in _limit(limits, _ANY_NUMBER)
    elif kind is str:
        length = _limit(limits, _ANY_LENGTH)
        fits = type(value) is str and length.least <= len(value) <= length.most
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError
    return float(value) if kind is float else value


def _tuple_value(value: Any, kinds: tuple[Any, ...], limits: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    length = _limit(limits, _ANY_LENGTH) if kinds[-1] is Ellipsis else Length(len(kinds), len(kinds))
    if not length.least <= len(value) <= length.most:
        raise ValueError
    each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    return tuple(read_value(item, kind, limits) for item, kind in zip(value, each, strict=True))


def described(hint: Any, limits: tuple[Any, ...] = (), *, plural: bool = False) -> str:
    """What the annotation `hint` wants, in words."""
    arms, limits = _arms(hint, limits)
    if len(arms) > 1:
        return " or ".join(described(arm, limits, plural=plural) for arm in arms)
    (kind,) = arms
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        length = _limit(limits, _ANY_LENGTH) if kinds[-1] is Ellipsis else Length(len(kinds), len(kinds))
        many = f"{length.least} to {length.most}" if length.least < length.most else str(length.most)
        return f"a list of {many} {described(kinds[0], limits, plural=True)}"
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if kind in (int, float):
        one, several = ("a whole number", "whole numbers") if kind is int else ("a number", "numbers")
        limit = _limit(limits, _ANY_NUMBER)
        if limit is _ANY_NUMBER:
            return several if plural else one
        low, high = (str(n) if isinstance(n, int) else f"{n:g}" for n in (limit.low, limit.high))
        return f"{several if plural else one} {f'above {low}, up to {high}' if limit.open else f'of {low} to {high}'}"
    if kind is str:
        length = _limit(limits, _ANY_LENGTH)
        return f"{'strings' if plural else 'a string'} of {length.least} to {length.most} characters"
    return {bool: "true or false", NoneType: "null"}[kind]


def _arms(hint: Any, limits: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The alternatives of an annotation, and its limits before those of the annotation that it is part of."""
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        limits = (*more, *limits)
    return (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)), limits


def _limit(limits: tuple[Any, ...], default: Any) -> Any:
    """The innermost limit of the kind of `default`."""
    return next((limit for limit in limits if type(limit) is type(default)), default)
