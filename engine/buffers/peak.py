"""Peak memory while something runs, on the device that it runs on."""

from __future__ import annotations

import resource
import sys
import threading
from weakref import WeakSet

import torch

from kinema.buffers.machine import PROC, held_bytes

_lock = threading.Lock()
_running: WeakSet[PeakMemory] = WeakSet()


class PeakMemory:
    """The most bytes that the process (on a GPU: torch in it) has held since this was made.

    The system's high-water mark is reset first, once every measurement in progress has read it, so each of two
    concurrent runs sees what the process held while it ran, the other's memory included. Where the mark cannot be reset
    and an earlier peak was higher, the most held at any `note` counts instead.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._most = 0
        with _lock:
            for other in _running:
                other._look()
            self._earlier = None if reset_peak(device) else peak_bytes(device)
            _running.add(self)

    def note(self) -> None:
        """Sample what is held now, where the system's mark cannot be reset."""
        if self._earlier is not None:
            self._look()

    def read(self) -> int:
        """The peak so far."""
        with _lock:
            self._look()
        return self._most

    def _look(self) -> None:
        peak = peak_bytes(self.device)
        if self._earlier is not None and peak <= self._earlier:
            peak = held_bytes(self.device)
        self._most = max(self._most, peak)


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
