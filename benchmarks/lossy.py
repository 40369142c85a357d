"""The options that trade exactness for speed. Each is registered here, and `bench fidelity` measures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Lossy:
    """load: the `LoadOptions` that it changes. request: the fields of `GenerationRequest` that it changes."""

    name: str
    kind: str
    load: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)


OPTIONS: dict[str, Lossy] = {}


def register(option: Lossy) -> Lossy:
    """Register an option, under a name of its own."""
    if option.name in OPTIONS:
        raise ValueError(f"a lossy option {option.name!r} is known already")
    OPTIONS[option.name] = option
    return option


for _precision in ("bf16", "fp16", "fp8", "int8"):
    register(Lossy(_precision, "precision", load={"precision": _precision}))
for _kind in ("int8", "fp8"):
    register(Lossy(f"{_kind}-attention", "attention", load={"quantize_attention": _kind}))
