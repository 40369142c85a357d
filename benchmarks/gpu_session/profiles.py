"""Summary of a profile: which kernels took how long, and how long the GPU was idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kinema.bench.gpu_session.question import Activity

LONGEST_NAME = 100  # characters: library templates have thousands


def summary(activities: Sequence[Activity]) -> dict[str, Any]:
    """Fields for a report. activities: in order of their starts.

    span_seconds: from the first start to the last end; idle_us: the part of it when nothing ran; kernels: by name, the
    longest total first; timeline: [index in kernels, start, length] of each, in µs.
    """
    if not activities:
        return {"activities": 0}
    names = [activity.name[:LONGEST_NAME] for activity in activities]
    totals: dict[str, list[float]] = {}
    for name, activity in zip(names, activities, strict=True):
        totals.setdefault(name, []).append(activity.seconds)
    ranked = sorted(totals, key=lambda name: -sum(totals[name]))
    numbers = {name: number for number, name in enumerate(ranked)}
    idle, until = _idle(activities)
    return {
        "activities": len(activities),
        "span_seconds": until - activities[0].start,
        "idle_us": round(1e6 * idle, 1),
        "kernels": [
            {"name": name, "count": len(totals[name]), "us": round(1e6 * sum(totals[name]), 1)} for name in ranked
        ],
        "timeline": [
            [numbers[name], round(1e6 * (a.start - activities[0].start), 1), round(1e6 * a.seconds, 1)]
            for name, a in zip(names, activities, strict=True)
        ],
    }


def _idle(activities: Sequence[Activity]) -> tuple[float, float]:
    """Seconds in which none of them ran, and when the last ended; they may overlap."""
    idle, until = 0.0, activities[0].start
    for activity in activities:
        idle += max(0.0, activity.start - until)
        until = max(until, activity.start + activity.seconds)
    return idle, until
