"""What one run cost: seconds per stage, peak memory, what ran each op, cache hits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from kinema.buffers.peak import PeakMemory
    from kinema.ops import Ops


class Clock(Protocol):
    """deferred: a moment's time is known only once the device has reached it; `between` waits for that."""

    deferred: bool

    def now(self) -> Any: ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one moment to another."""
        ...


class HostClock:
    deferred = False

    def now(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return end - start


class GpuClock:
    """Events between a GPU's kernels: launches return at once, so the host's clock would measure something else."""

    deferred = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


@dataclass
class CacheUse:
    """What became of each step: "guided" (both branches ran), "conditional" (one did) or "held" (none did).

    row_forwards: samples that went through the transformer, `exact` as many as without a cache. nbytes: the most that
    was held.
    """

    steps: list[str] = field(default_factory=list)
    row_forwards: int = 0
    exact: int = 0
    nbytes: int = 0

    @property
    def saved(self) -> float:
        """The share of row-forwards that were not made."""
        return 1.0 - self.row_forwards / self.exact if self.exact else 0.0

    def summary(self, seconds: float) -> dict[str, Any]:
        """Plain values. seconds: of all steps; those saved are what forwards that were not made would have taken."""
        forward = seconds / self.row_forwards if self.row_forwards else 0.0
        return {**asdict(self), "saved": self.saved, "seconds_saved": forward * (self.exact - self.row_forwards)}


@dataclass
class Stats:
    """The figures of one request. It belongs to that request and is filled in as the request runs.

    `seconds` is time per stage in the order in which the stages first ran, on a GPU by the GPU's clock. `peak_bytes`
    is the most that the process held while this request ran, whatever else it did; None where it was not measured.
    `forwards` counts calls of the transformer (two per step with guidance, one without). `interrupted`: the run was
    ended before its last step. cache: what it saved, if one was asked for. GPU seconds, steps and the peak are filled
    in by `complete`.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    backends: dict[str, str] = field(default_factory=dict)
    cache_hits: dict[str, int] = field(default_factory=dict)
    seed: int | None = None
    steps: int = 0
    forwards: int = 0
    interrupted: bool = False
    cache: CacheUse | None = None
    _clock: Clock = field(default_factory=HostClock, repr=False, compare=False)
    _peak: PeakMemory | None = field(default=None, repr=False, compare=False)
    _running: list[tuple[str, Any, Any, float]] = field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def of(ops: Ops) -> Stats:
        """The stats of a run that begins now, with these ops."""
        from kinema.buffers.peak import PeakMemory

        clock = GpuClock(ops.device) if ops.device.type == "cuda" else HostClock()
        backends = {choice.op: choice.backend for choice in ops.plan.choices}
        return Stats(backends=backends, _clock=clock, _peak=PeakMemory(ops.device))

    def branch(self) -> Stats:
        """These figures so far, to which one way of finishing the run adds its own."""
        copies = {name: copy(getattr(self, name)) for name in ("seconds", "backends", "cache_hits", "_running")}
        return replace(self, **copies)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str, loading: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
        """Add the time of the block to `seconds[name]`, also when the block raises.

        loading: a clock that runs while parts of a model are loaded (`Components.loading`); what it advances by
        within the block is the stage "load".
        """
        start, loaded = self._clock.now(), loading()
        try:
            yield
        finally:
            loaded = loading() - loaded
            if loaded:
                self.seconds["load"] = self.seconds.get("load", 0.0) + loaded
            self.seconds.setdefault(name, 0.0)
            self._running.append((name, start, self._clock.now(), loaded))
            if not self._clock.deferred:
                self._settle()
            if self._peak is not None:
                self._peak.note()

    def complete(self, steps: int, *, interrupted: bool = False) -> None:
        """Fill in what is known at the end of a run."""
        self._settle()
        self.steps, self.interrupted = steps, interrupted
        if self._peak is not None:
            self.peak_bytes = self._peak.read()

    def summary(self) -> dict[str, Any]:
        """All fields and `total_seconds` as plain values that `json.dumps` takes."""
        public = {each.name: getattr(self, each.name) for each in fields(self) if not each.name.startswith("_")}
        if self.cache is not None:
            public["cache"] = self.cache.summary(self.seconds.get("denoise", 0.0))
        return {**public, "total_seconds": self.total_seconds}

    def _settle(self) -> None:
        for name, start, end, loaded in self._running:
            self.seconds[name] += max(0.0, self._clock.between(start, end) - loaded)
        self._running.clear()
