"""How much memory is available and held: on the GPU, or on the machine and in its control groups."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device | None = None) -> int:
    """Memory that this process could still get; sys.maxsize where the system does not say."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = list(_group_limits())
    meminfo = PROC / "meminfo"
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    return max(0, min(limits, default=sys.maxsize))


def held_bytes(device: torch.device) -> int:
    """What this process holds now, on the device that it runs on."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    statm = PROC / "self" / "statm"
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.is_file() else 0


def obtainable_bytes(device: torch.device) -> int:
    """What this process holds, and what it could still get."""
    return available_bytes(device) + held_bytes(device)


def _group_limits() -> Iterator[int]:
    """What is left in each control group (version 1 or 2) that this process is in, file caches counted as free."""
    groups = PROC / "self" / "cgroup"
    if not groups.is_file():
        return
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, maximum, current, prefix = GROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, prefix = GROUPS / "memory", "total_"
            maximum, current = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root) and (folder / maximum).is_file():
                limit = (folder / maximum).read_text().strip()
                if limit != "max":
                    used = int((folder / current).read_text())
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    caches = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                    yield int(limit) - used + caches
