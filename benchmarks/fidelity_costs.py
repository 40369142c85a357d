"""What the rows of `bench fidelity` cost, which fewer steps cost as much, and which rows are worth nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.bench.intervals import paired_ratio
from kinema.bench.report import spread, timing
from kinema.bench.rounds import Call, interleaved
from kinema.bench.variants import EXACT, FLOOR, cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.bench.prompt_sets import Asked
    from kinema.bench.report import Report
    from kinema.bench.variants import Variant
    from kinema.request.stats import Stats

# the distances that a row is judged by: 1 where more is nearer, -1 where less is
NEARER = {"psnr": 1, "ssim": 1, "last_step_error": -1, "adherence": 1}


def timed(variants: Sequence[Variant], clip: Asked, rounds: int) -> tuple[dict[str, Report], float]:
    """A row of each, timed in rounds with the exact run, the first; and the share of its time that its steps take.

    With no rounds one generation counts the forwards, and nothing is said of time.
    """
    found: dict[str, list[Stats]] = {variant.name: [] for variant in variants}

    def call_of(variant: Variant) -> Call:
        return lambda: found[variant.name].append(cost(variant, clip))

    calls = {variant.name: call_of(variant) for variant in variants}
    if rounds:
        samples = interleaved(calls, rounds, warmup=1, shortest=0)
    else:
        samples = {name: [] for name in calls}
        for call in calls.values():
            call()
    base, first = variants[0].name, found[variants[0].name][-1]
    rows: dict[str, Report] = {}
    for variant in variants:
        name, stats = variant.name, found[variant.name]
        row: Report = {"name": name, "kind": variant.kind, "forwards_share": stats[-1].forwards / first.forwards}
        if rounds:
            denoise = {n: [s.seconds["denoise"] for s in found[n][-rounds:]] for n in (base, name)}
            row |= timing(name, samples[name])
            row["than_exact"] = paired_ratio(samples[base], samples[name]).as_dict()
            row["transformer_seconds"] = spread(denoise[name])
            row["transformer_than_exact"] = paired_ratio(denoise[base], denoise[name]).as_dict()
        rows[name] = row
    return rows, first.seconds["denoise"] / first.total_seconds


def equal_cost_steps(rows: Sequence[Report], steps: int, share: float) -> list[int]:
    """Numbers of steps that the exact run does with the forwards of each option, or in its time where it saves none.

    share: of a generation's time that depends on the number of steps: not prompts and decoding. An option that is no
    cheaper has no such number.
    """
    counts = set()
    for row in rows:
        if row["kind"] in (EXACT, FLOOR):
            continue
        if row["forwards_share"] < 1:
            counts.add(round(steps * row["forwards_share"]))
        elif "than_exact" in row:
            counts.add(round(steps * (1 - (1 - 1 / row["than_exact"]["median"]) / share)))
    return sorted({max(1, count) for count in counts if count < steps}, reverse=True)


def mark_dominated(rows: Sequence[Report]) -> None:
    """Note in each row another that is faster and no farther from the exact run, by every distance that both have.

    Noise does not dominate: faster means by the whole 95 % intervals.
    """
    for row in rows:
        for other in rows:
            judged = row["kind"] not in (EXACT, FLOOR) and other["kind"] != FLOOR
            if other is not row and judged and _beats(other, row):
                row["dominated"] = other["name"]
                break


def _beats(one: Report, other: Report) -> bool:
    if "than_exact" not in one or "than_exact" not in other:
        return False
    a, b = one["than_exact"], other["than_exact"]
    clearly = None not in (a["low"], b["high"]) and a["low"] > b["high"]
    if one["kind"] == EXACT:  # the exact run is as near as can be: a row that saves no time gains nothing
        return b["high"] is not None and b["high"] <= 1.0
    both = [name for name in NEARER if name in one and name in other]
    return bool(clearly and all(NEARER[name] * (one[name] - other[name]) >= 0 for name in both))
