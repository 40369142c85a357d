"""What earlier runs on this machine took, stage by stage: a JSON file in the cache folder.

A file that is missing, damaged, of another machine or not to be written costs accuracy and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median_low

import torch

from kinema.ops.common.cache_files import cache_folder, write_whole

FORMAT = 1
KEPT_OF_A_KIND = 8  # the newest runs of one stage of one model
KEPT = 1000
SMALLER_EXPONENT = 0.8  # of seconds over work, below the smallest run


@dataclass(frozen=True)
class Run:
    """A stage of a run. kind: what ran it, on what; model: of what. work: FLOPs, or bytes that were loaded."""

    kind: str
    model: str
    stage: str
    work: float
    seconds: float


def file() -> Path:
    return cache_folder() / "runs.json"


def read() -> list[Run]:
    """The runs that are known, the oldest first."""
    try:
        content = json.loads(file().read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return []
        runs = [Run(**entry) for entry in content["runs"]]
        return [run for run in runs if _is_sound(run)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def remember(new: Iterable[Run]) -> None:
    """Add runs to the file; the oldest of their kind give way."""
    kept: list[Run] = []
    count: dict[tuple[str, str, str], int] = {}
    for run in reversed([*read(), *filter(_is_sound, new)]):
        same = (run.kind, run.model, run.stage)
        count[same] = count.get(same, 0) + 1
        if count[same] <= KEPT_OF_A_KIND and len(kept) < KEPT:
            kept.append(run)
    content = {"format": FORMAT, "runs": [asdict(run) for run in reversed(kept)]}
    with suppress(OSError):
        write_whole(file(), json.dumps(content, indent=1) + "\n")


def seconds_for(work: float, runs: Sequence[Run], rate: Callable[[], float]) -> float:
    """Seconds of so much work: on a line through the logarithms of the runs of the next less and the next more of it.

    Of less than was ever run: by a power of the least, since what every run costs weighs more. Of more: what the most
    took, and the rest at the machine's own rate, unless in proportion it would be less. Of runs of one amount the
    median of the newest three counts.
    runs: at least one, the oldest first. rate: work a second.
    """
    by_work: dict[float, list[float]] = {}
    for run in runs:
        by_work.setdefault(run.work, []).append(run.seconds)
    points = sorted((amount, median_low(taken[-3:])) for amount, taken in by_work.items())
    below = [point for point in points if point[0] <= work]
    above = [point for point in points if point[0] > work]
    if not below:
        least, taken = above[0]
        return taken * math.exp(SMALLER_EXPONENT * math.log(work / least))
    less, fast = below[-1]
    if not above:
        return fast if work == less else min(fast * work / less, fast + (work - less) / rate())
    more, slow = above[0]
    share = math.log(work / less) / math.log(more / less)
    return math.exp((1 - share) * math.log(fast) + share * math.log(slow))


@lru_cache(maxsize=4)
def machine(device: torch.device) -> str:
    """The processor, or the GPU, that runs are compared on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "an unknown processor"


def _is_sound(run: Run) -> bool:
    words = all(isinstance(value, str) for value in (run.kind, run.model, run.stage))
    numbers = all(isinstance(value, (int, float)) and 0 < value < math.inf for value in (run.work, run.seconds))
    return words and numbers
