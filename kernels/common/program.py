"""Native calls recorded once and replayed by one call of the library (csrc/cpu/program.cpp).

A recording holds addresses. What the calls read and write must therefore stay: every tensor and struct that an op's
function held while it made its call is kept, and scratch is the recording's own. Whatever torch would compute between
the calls could not be replayed, so a body that has any of it is not recorded.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kinema.ops.common import native
from kinema.ops.common.interrupts import Control, interruptible
from kinema.ops.common.pages import aligned_bytes

ALLOCATE = frozenset({"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::detach"})


class NotRecordable(Exception):
    """A body does more than native calls, by one handle."""


class Program:
    """What was recorded of a body; calling it does that again, at the same addresses."""

    def __init__(self, cpu: native.Cpu) -> None:
        handle = ctypes.c_void_p()
        cpu.check(cpu.library.kinema_program_create(cpu.handle, ctypes.byref(handle)))
        assert handle.value is not None
        self._cpu, self._handle = cpu, handle.value
        self._held: list[object] = []
        self._scratch = aligned_bytes(0)
        self.length = 0
        weakref.finalize(self, cpu.library.kinema_program_destroy, self._handle)

    def __call__(self, *, skip_tasks: bool = False) -> None:
        """Interrupted, or what the handler of a signal raised: then what it writes is partly written.

        skip_tasks: every call is made and computes nothing, to measure what calls cost beside their arithmetic.
        """
        run = self._cpu.library.kinema_program_run
        if skip_tasks:
            self._cpu.check(run(self._handle, ctypes.byref(Control(skip_tasks=1))))
        else:
            self._cpu.check(interruptible(run, self._handle))

    def note(self, cpu: native.Cpu, name: str, arguments: ctypes.Structure, held: dict[str, Any]) -> None:
        """Append a call that was just made. held: what its caller has; it is kept, with all that the call reads."""
        if cpu is not self._cpu:
            raise NotRecordable(f"{name} runs on the kernels of {cpu.isa}, those before on {self._cpu.isa}")
        op = native.PROGRAM_OPS.index(name.removeprefix("kinema_"))
        self._cpu.check(self._cpu.library.kinema_program_append(self._handle, op, ctypes.byref(arguments)))
        self._held.append((arguments, held))
        self.length += 1

    @property
    def scratch_bytes(self) -> int:
        return self._scratch.numel()

    def workspace(self, count: int) -> int:
        """Address of scratch for a call: the recording's, for all calls that it is large enough for."""
        if self._scratch.numel() < count:
            self._held.append(self._scratch)  # earlier calls write there
            self._scratch = aligned_bytes(count)
        return self._scratch.data_ptr()


class _OnlyNativeCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses whatever torch computes: allocations and views are all that may happen."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first dispatch imports torch._dynamo, for a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (func.is_view or func._schema.name in ALLOCATE):
            raise NotRecordable(f"torch computes {func._schema.name} in it")
        return func(*args, **(kwargs or {}))


def record(body: Callable[[], torch.Tensor]) -> tuple[Program, torch.Tensor]:
    """Run a body of native calls, and return what replays it and the tensor that it then writes.

    NotRecordable if it does anything else.
    """
    program = Program(native.cpu())
    with _OnlyNativeCalls(), native.recorded_by(program):  # type: ignore[no-untyped-call]
        result = body()
    if program.length == 0:
        raise NotRecordable("it makes no native call")
    return program, result
