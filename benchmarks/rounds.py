"""Times calls in interleaved rounds: each call once a round, so that disturbances affect all alike."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping

import torch

from kinema.bench.intervals import FEWEST

Call = Callable[[], object]
WARMUP = 3
SHORTEST = 1e-3  # seconds of a sample: a shorter call is repeated within it
MOST_REPEATS = 1000


def say_if_few(rounds: int) -> None:
    """Warn before measuring if so few rounds will give no intervals and no ratios, and say how many would."""
    if rounds < FEWEST and sys.stderr is not None:
        print(f"--rounds {rounds}: medians only, an interval or a ratio needs {FEWEST} or more", file=sys.stderr)


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    device: torch.device | None = None,
    warmup: int = WARMUP,
    shortest: float = SHORTEST,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of a call, {name: one sample per round}.

    The order rotates from round to round. device: calls on a GPU are timed by its own clock.
    shortest: shorter calls are repeated, and a sample is their mean.
    """
    timed = _seconds_on_gpu(device) if device is not None and device.type == "cuda" else _seconds
    repeats = {}
    for name, call in calls.items():
        for _ in range(warmup):
            call()
        repeats[name] = min(MOST_REPEATS, max(1, round(shortest / max(timed(call, 1), 1e-9)))) if shortest else 1
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(timed(calls[name], repeats[name]))
            advance()
    finally:
        if collecting:
            gc.enable()
    return samples


def _seconds(call: Call, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def _seconds_on_gpu(device: torch.device) -> Callable[[Call, int], float]:
    def timed(call: Call, repeats: int) -> float:
        with torch.cuda.device(device):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            for _ in range(repeats):
                call()
            after.record()
            after.synchronize()
        return float(before.elapsed_time(after)) / 1e3 / repeats

    return timed
