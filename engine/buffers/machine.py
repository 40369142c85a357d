"""How much memory is available, held and was held at most: on the GPU, or on the machine and in its control groups."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held since its start or `reset_peak`, on the device that it runs on."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = PROC / "self" / "status"
    if status.is_file():
        # getrusage would do, but a process inherits the peak of its parent
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> bool:
    """Restart the peak from what is held now; False where the system cannot.

    The figure is the process's: others that read it (ru_maxrss, torch's statistics) see it restart, too.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


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
            root, maximum, current, prefix = (
                GROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_",
            )
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


def return_freed_bytes() -> None:
    """Return freed memory to the system: glibc keeps it, gigabytes once a model is gone."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it
        if trim is not None:
            trim(0)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@contextmanager
def keeping_freed_bytes() -> Iterator[None]:
    """For timing: freed memory stays with the process, so that no call waits for the pages of its result."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        yield
        return
    set_option(M_MMAP_MAX, 0)
    set_option(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        set_option(M_MMAP_MAX, 2**16)  # glibc's own numbers
        set_option(M_TRIM_THRESHOLD, 2**17)
        return_freed_bytes()
