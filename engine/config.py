"""Reading a component's config.json into a frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from kinema.errors import CheckpointError

T = TypeVar("T")


def from_config(cls: type[T], config: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> T:
    """Build the dataclass `cls` from a diffusers or transformers config.

    Lists become tuples. Keys that start with "_" or are in `ignore` are skipped. A key that the dataclass
    does not know is an error unless it is null: an option that is dropped silently gives wrong videos.
    """
    assert is_dataclass(cls)
    known = {field.name: field for field in fields(cls)}
    values: dict[str, Any] = {}
    unknown = []
    for key, value in config.items():
        if key in known:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif not key.startswith("_") and key not in ignore and value is not None:
            unknown.append(f"{key}={value!r}")
    if unknown:
        raise CheckpointError(
            f"{cls.__name__} does not know {', '.join(unknown)}: this version of kinema cannot honour these options"
        )
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise CheckpointError(f"{cls.__name__} lacks {', '.join(missing)} in config.json")
    return cls(**values)
