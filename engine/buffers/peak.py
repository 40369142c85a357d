"""Peak memory while something runs, on the device that it runs on."""

from __future__ import annotations

import threading
from weakref import WeakSet

import torch

from kinema.buffers import machine as machine_memory

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
            self._earlier = None if machine_memory.reset_peak(device) else machine_memory.peak_bytes(device)
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
        peak = machine_memory.peak_bytes(self.device)
        if self._earlier is not None and peak <= self._earlier:
            peak = machine_memory.held_bytes(self.device)
        self._most = max(self._most, peak)
