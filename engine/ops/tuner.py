"""Times each candidate of the kernels' tables on the calls that a run makes, and keeps the fastest: `kinema tune`.

Nothing else in kinema measures to choose: a launch only looks up what was found here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from kinema.errors import OutputError
from kinema.ops import Ops
from kinema.ops.common import tuned
from kinema.ops.common.cache_files import FOLDER_VARIABLE
from kinema.ops.common.launch import Config, Visit, forced, watching

Call = Callable[[], Any]
Timer = Callable[[Call], float]

ROUNDS = 15
LEAST_ROUNDS = 3
LONG = 5.0  # seconds that one kind of call is measured for, if its least rounds take no longer
NOISE = 0.02  # what is no faster than the default by this much is no reason to leave it
DISTANCE = 0.05  # of a result from the default's: other tiles round otherwise, a miscompiled kernel is far off
FLUSH = 256 << 20


class GpuTimer:
    """Seconds that a GPU takes for a call, by its own clock.

    Before each call a buffer larger than any cache is filled: that empties the cache, and keeps the GPU busy until
    the host has launched all of the call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(FLUSH, dtype=torch.uint8, device=device)

    def __call__(self, call: Call) -> float:
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            for _ in range(3):
                self._buffer.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Outcome:
    """One kind of call. seconds: of each candidate, None if it failed; failures: {number: why}; choice: None if all."""

    key: str
    candidates: tuple[Config, ...]
    seconds: tuple[float | None, ...]
    failures: Mapping[int, str]
    choice: int | None

    def as_choice(self) -> tuned.Choice:
        assert self.choice is not None
        microseconds = tuple(s if s is None else round(1e6 * s, 1) for s in self.seconds)
        return tuned.Choice(self.choice, str(self.candidates[self.choice]), microseconds)


class Tuner:
    """Runs calls as they are, and the first of every kind also with each candidate of its tables.

    known: kinds that need no measuring. report is called with each outcome when it has been written.
    """

    def __init__(
        self,
        device: torch.device,
        timer: Timer,
        *,
        known: Sequence[str] = (),
        report: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self.device = device
        self.known = set(known)
        self.outcomes: list[Outcome] = []
        self._timer = timer
        self._report = report

    def watch(self, ops: Ops) -> Ops:
        """The same ops, whose calls are seen here."""
        names = [field.name for field in fields(ops) if field.name != "plan" and not field.name.startswith("_")]
        passing: dict[str, Any] = {name: partial(self.call, getattr(ops, name)) for name in names}
        return replace(ops, **passing)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """function(*arguments, **options); then, if it is the first of its kind, its candidates are timed."""
        with watching() as visits:
            result = function(*arguments, **options)
        # a result written over its residual would grow with every repetition
        options.pop("out", None)
        for visit in visits:
            if visit.key not in self.known:
                self.known.add(visit.key)
                self._settle(visit, partial(function, *arguments, **options))
        return result

    def _settle(self, visit: Visit, call: Call) -> None:
        runs = [partial(_under, visit.table, config, call) for config in visit.candidates]
        failures: dict[int, str] = {}
        wanted: Any = None
        for number, run in enumerate(runs):
            try:
                run()
                result = run()  # by now a cache that the op renews holds what it will hold in every repetition
                if wanted is not None and (distance := _distance(result, wanted)) > DISTANCE:
                    failures[number] = f"its result is {distance:.2g} away from the default's"
                wanted = result if wanted is None else wanted
            except Exception as error:
                failures[number] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        seconds = self._measure({n: run for n, run in enumerate(runs) if n not in failures})
        outcome = Outcome(
            visit.key, visit.candidates, tuple(seconds.get(n) for n in range(len(runs))), failures, fastest(seconds)
        )
        self.outcomes.append(outcome)
        if outcome.choice is not None:
            try:
                tuned.remember(self.device, {outcome.key: outcome.as_choice()})
            except OSError as error:
                path = tuned.file(tuned.gpu_name(self.device))
                raise OutputError(
                    f"cannot write {path}: {error.strerror or error}; {FOLDER_VARIABLE} names another folder"
                ) from error
        self._report(outcome)

    def _measure(self, runs: Mapping[int, Call]) -> dict[int, float]:
        """Medians over rounds in which every candidate has its turn, so that a clock that changes is fair to all."""
        seconds: dict[int, list[float]] = {number: [] for number in runs}
        for done in range(ROUNDS):
            if done >= LEAST_ROUNDS and sum(map(sum, seconds.values())) > LONG:
                break
            for number, run in runs.items():
                seconds[number].append(self._timer(run))
        return {number: median(values) for number, values in seconds.items()}


def fastest(seconds: Mapping[int, float]) -> int | None:
    """The candidate with the least time, but the default (0) if none is faster by more than noise."""
    if not seconds:
        return None
    best = min(seconds, key=lambda number: seconds[number])
    return 0 if 0 in seconds and seconds[best] > (1 - NOISE) * seconds[0] else best


def _under(table: str, config: Config, call: Call) -> Any:
    with forced({table: config}):
        return call()


def _distance(result: Any, wanted: Any) -> float:
    """Largest |result − wanted| / |wanted| of an op's tensors, as norms; 0 where `wanted` is not finite."""
    if isinstance(wanted, torch.Tensor):
        size = float(torch.linalg.vector_norm(wanted, dtype=torch.float32))
        error = float(torch.linalg.vector_norm(result - wanted, dtype=torch.float32))
        if size == 0.0 or not size < float("inf"):
            return 0.0
        return error / size if error == error else float("inf")
    return max((_distance(r, w) for r, w in zip(result, wanted, strict=True)), default=0.0)
