"""What one run cost: seconds per stage, peak memory, what ran each op, cache hits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Stats:
    """The figures of one request. It belongs to that request and is filled in as the request runs.

    `seconds` is wall time per stage in the order in which the stages first ran. `peak_bytes` is None where it
    was not measured. `forwards` counts calls of the transformer (two per step with guidance, one without).
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    backends: dict[str, str] = field(default_factory=dict)
    cache_hits: dict[str, int] = field(default_factory=dict)
    seed: int | None = None
    steps: int = 0
    forwards: int = 0

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str, loading: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
        """Add the wall time of the block to `seconds[name]`, also when the block raises.

        loading: a clock that runs while parts of a model are loaded (`Components.loading`); what it advances by
        within the block is the stage "load". A GPU works on after its launches return: synchronise at the end of
        the block if the stage ran there.
        """
        start, loaded = time.perf_counter(), loading()
        try:
            yield
        finally:
            spent, loaded = time.perf_counter() - start, loading() - loaded
            if loaded:
                self.seconds["load"] = self.seconds.get("load", 0.0) + loaded
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - loaded

    def summary(self) -> dict[str, Any]:
        """All fields and `total_seconds` as plain values that `json.dumps` takes."""
        return {**asdict(self), "total_seconds": self.total_seconds}
