"""Checks of values from outside, by type and range. They return plain Python, whatever library made the value."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.errors import RequestError, shown

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Check = Callable[[str, Any], Any]

MAX_WHOLE = 2**31 - 1  # for anything counted: far beyond what memory holds, and safe to multiply
MAX_CHARACTERS = 100_000  # of a text: no model reads a hundredth of them
FP32_MAX = 3.4e38


def check_fields(instance: Any, checks: Mapping[str, Check]) -> None:
    """Check every field of a frozen dataclass and keep what its check returns; None passes where it is the default."""
    for field in fields(instance):
        value = getattr(instance, field.name)
        if value is not None or field.default is not None:
            object.__setattr__(instance, field.name, checks[field.name](field.name, value))


def whole(name: str, value: Any, low: int = 1, high: int = MAX_WHOLE) -> int:
    """An integer of any library, as an int; True and False are refused."""
    plain = _plain(value)
    if not isinstance(plain, bool) and isinstance(plain, Integral) and low <= int(plain) <= high:
        return int(plain)
    too_large = not isinstance(plain, bool) and isinstance(plain, Integral) and int(plain) > high
    limit = f" and at most {high}" if too_large or high < MAX_WHOLE else ""
    raise RequestError(f"{name} is {shown(value)}: wanted a whole number of at least {low}{limit}")


def number(name: str, value: Any, low: float = -FP32_MAX, high: float = FP32_MAX) -> float:
    """A finite number of any library, as a float."""
    plain = _plain(value)
    if not isinstance(plain, bool) and isinstance(plain, Real):
        try:
            found = float(plain)
        except OverflowError:  # an integer of hundreds of digits
            found = math.inf
        if low <= found <= high:
            return found
    raise RequestError(f"{name} is {shown(value)}: wanted a number{_between(low, high)}")


def flag(name: str, value: Any) -> bool:
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise RequestError(f"{name} is {shown(value)}: wanted True or False")
    return plain


def word(name: str, value: Any) -> str:
    """A short string, such as the name of a device."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise RequestError(f"{name} is {shown(value)}: wanted a string")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise RequestError(f"{name} is {shown(value)}: wanted a function")
    return value  # type: ignore[no-any-return]


def named_path(name: str, value: Any) -> str | os.PathLike[str]:
    """A path as text."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise RequestError(f"{name} is {shown(value)}: wanted a string or a pathlib.Path")
    return value


def of_kind(name: str, value: Any, wanted: type[T]) -> T:
    """The value itself, if it is an instance of `wanted`."""
    if not isinstance(value, wanted):
        raise RequestError(f"{name} is {kind(value)}: wanted a {wanted.__name__}")
    return value


def generators(name: str, value: Any) -> torch.Generator | list[torch.Generator]:
    """A torch.Generator on any device, or a list of them (copied)."""
    import torch

    wrong = [one for one in (value if isinstance(value, list) else [value]) if not isinstance(one, torch.Generator)]
    if wrong:
        raise RequestError(f"{name} is {shown(wrong[0])}: wanted a generator (torch.Generator)")
    return list(value) if isinstance(value, list) else value


def each_of_kind(name: str, values: Any, wanted: type[T]) -> list[T]:
    """The values as a list, if each is an instance of `wanted`."""
    if not isinstance(values, Iterable):
        raise RequestError(f"{name} is {kind(values)}: wanted a list of {wanted.__name__}")
    return [of_kind(f"one of {name}", value, wanted) for value in values]


def prompts(name: str, value: Any) -> str | list[str]:
    """A string, or a list of strings (copied), that a model can read."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(text, str) for text in listed):
        raise RequestError(f"{name} is {shown(value)}: wanted a string or a list of strings")
    for text in listed:
        if len(text) > MAX_CHARACTERS:
            raise RequestError(f"{name} has {len(text)} characters: wanted at most {MAX_CHARACTERS}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} {shown(text)} is not Unicode: it holds half of a surrogate pair") from None
    return list(value) if isinstance(value, list) else value


def dense(name: str, value: Any, *, floating: bool = True) -> torch.Tensor:
    """A dense tensor of real numbers that holds its values. floating: integers are refused."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_nested:
        raise RequestError(f"{name} is {kind(value)}: wanted a tensor")
    if value.device.type == "meta":
        raise RequestError(f"{name} is a tensor on the meta device, which holds no values: wanted one on another")
    if value.layout is not torch.strided or value.is_complex() or (floating and not value.is_floating_point()):
        layout = "" if value.layout is torch.strided else f" in the layout {value.layout}"
        wanted = "floating values" if floating else "real numbers"
        raise RequestError(f"{name} is a tensor of {value.dtype}{layout}: wanted a dense one of {wanted}")
    return value


def floats(name: str, value: Any, wanted: str) -> torch.Tensor:
    """A tensor of finite floating values; `wanted` names its axes, such as [B, L, C]."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_nested or value.ndim != wanted.count(",") + 1:
        raise RequestError(f"{name} is {kind(value)}: wanted a tensor {wanted}")
    dense(name, value)
    if 0 in value.shape:
        raise RequestError(f"{name} is {kind(value)}: wanted {wanted}, at least 1 of each")
    if not bool(torch.isfinite(value.detach().float()).all()):
        raise RequestError(f"{name} holds NaN or infinity (in fp32): wanted finite values")
    return value


def kind(value: Any) -> str:
    """A value for a message: its type and, if it is an array or a tensor, its shape."""
    try:
        return f"a {type(value).__name__.lower()} of shape {tuple(value.shape)}"
    except Exception:  # it has none, or a nested one
        return f"a {type(value).__name__}"


def _plain(value: Any) -> Any:
    """The Python number in a 0-d array or tensor (numpy's scalars included)."""
    if isinstance(value, (int, float)) or getattr(value, "shape", None) != ():
        return value
    try:
        return value.item()
    except Exception:  # on the meta device there is none
        return value


def _between(low: float, high: float) -> str:
    return "" if high == FP32_MAX else f" of {low:g} to {high:g}"
