"""The native library's own probes (csrc/cpu/probe.h): chains of multiply-adds in registers, and a copy."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from kinema.ops.common import native

DTYPES = {"fp32": native.F32, "int8": native.I8, "bf16": native.BF16}
SECONDS = 2e-3  # of one probe: long enough to wake the threads, short enough that few are disturbed


@dataclass(frozen=True)
class NativePeak:
    """Probes on the best available instruction set, whichever the kernels are forced to use."""

    cpu: native.Cpu
    threads: int

    def arithmetic(self, unit: str, seconds: float = SECONDS) -> tuple[Callable[[], None], int]:
        """A call of about `seconds`, and its operations (a multiply-add is two). unit: one of `units`."""
        function, done = self.cpu.library.kinema_probe_arithmetic, ctypes.c_int64()
        function.argtypes = [
            ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p,
        ]  # fmt: skip
        steps = 1000

        def call(threads: int = self.threads) -> None:
            self.cpu.check(function(self.cpu.handle, DTYPES[unit], steps, threads, ctypes.byref(done)))

        # on one thread, the quickest of three: starting or waiting for threads, or a disturbance, would count as work
        while min(_seconds(partial(call, 1)) for _ in range(3)) < seconds / 2:
            steps *= 2
        call()
        return call, done.value

    @property
    def units(self) -> tuple[str, ...]:
        """The units that it has loops for: bf16 only where there are instructions for it."""
        multiplies_bf16 = self.cpu.library.kinema_linear_multiplies_bf16(self.cpu.handle)
        return tuple(DTYPES) if multiplies_bf16 else ("fp32", "int8")

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        """A call that copies one dense tensor into another of the same size."""
        function = self.cpu.library.kinema_probe_copy
        function.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32,
        ]  # fmt: skip

        def call() -> None:
            function(self.cpu.handle, source.data_ptr(), target.data_ptr(), source.nbytes, self.threads)

        return call


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def native_peak(threads: int) -> NativePeak | None:
    """None without the library, or with an older one that has no probes."""
    known = native.instruction_sets()
    if not known:
        return None
    with native.forced(known[0]):
        cpu = native.cpu()
    return NativePeak(cpu, threads) if hasattr(cpu.library, "kinema_probe_arithmetic") else None
