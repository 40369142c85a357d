"""What the driver says about a GPU, through its management library, which creates no CUDA context."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

_SM, _MEMORY = 1, 2  # nvmlClockType_t
_GPU_SENSOR = 0  # nvmlTemperatureSensors_t


class Gpu:
    """One GPU. Values that the library does not know, or all without a library, are left out."""

    def __init__(self, uuid: str | None) -> None:
        self._library = _library()
        self._handle = ctypes.c_void_p()
        if self._library is not None and (
            uuid is None
            or self._library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(self._handle)) != 0
        ):
            self._library = None

    def clocks(self) -> dict[str, float]:
        """Now: "sm_mhz", "memory_mhz", "watts", "celsius"."""
        watts = self._number("nvmlDeviceGetPowerUsage", name="watts")
        return {
            **self._number("nvmlDeviceGetClockInfo", _SM, name="sm_mhz"),
            **self._number("nvmlDeviceGetClockInfo", _MEMORY, name="memory_mhz"),
            **{name: value / 1000 for name, value in watts.items()},
            **self._number("nvmlDeviceGetTemperature", _GPU_SENSOR, name="celsius"),
        }

    def limits(self) -> dict[str, float]:
        """The maxima of `clocks`: "sm_mhz", "memory_mhz", "watts"."""
        watts = self._number("nvmlDeviceGetEnforcedPowerLimit", name="watts")
        return {
            **self._number("nvmlDeviceGetMaxClockInfo", _SM, name="sm_mhz"),
            **self._number("nvmlDeviceGetMaxClockInfo", _MEMORY, name="memory_mhz"),
            **{name: value / 1000 for name, value in watts.items()},
        }

    def driver(self) -> str | None:
        text = ctypes.create_string_buffer(80)
        if self._library is None or self._library.nvmlSystemGetDriverVersion(text, len(text)) != 0:
            return None
        return text.value.decode()

    def _number(self, function: str, *arguments: int, name: str) -> dict[str, float]:
        value = ctypes.c_uint()
        if self._library is None:
            return {}
        failed = getattr(self._library, function)(self._handle, *arguments, ctypes.byref(value))
        return {} if failed else {name: value.value}


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None
