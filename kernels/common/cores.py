"""How many cores this process may use: those of its affinity mask, or fewer if its control groups get less time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """At least 1. Both limits may change while the process runs: they are looked up once a second."""
    return _cores(int(time.monotonic()))


@lru_cache(maxsize=1)
def _cores(_second: int) -> int:
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([found, *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each control group (version 1 or 2) of this process gets, where that is limited."""
    groups = PROC / "self" / "cgroup"
    if not groups.is_file():
        return
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = GROUPS, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            root, names = GROUPS / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        inner = root / path.lstrip("/")
        inner = inner if inner.is_dir() else root  # in a container the path may be the host's
        for group in (inner, *inner.parents):
            try:
                quota, period = " ".join((group / name).read_text() for name in names).split()
                if quota not in ("max", "-1"):
                    yield int(quota) / int(period)
            except (OSError, ValueError, ZeroDivisionError):  # no limit at this level, or none that can be read
                pass
            if group == root:
                break
