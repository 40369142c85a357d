"""The library of native CPU kernels (csrc/cpu): found beside this file, loaded once, called through its C interface.

ctypes and not an extension module: the library knows nothing of Python, so one build serves every version of Python,
other programs can use the same file, and building it needs only a compiler and CMake.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, overload

import torch

from kinema.ops.common.capability import Implementation, Target
from kinema.ops.common.interrupts import Interrupted, interruptible
from kinema.ops.common.pages import aligned_bytes
from kinema.ops.common.rope import Rope
from kinema.ops.common.threads import survive_forks

ABI_VERSION = 9  # of csrc/include/kinema.h
ISA_VARIABLE = "KINEMA_CPU_ISA"  # forces an instruction set: portable, avx2, avx512, avx512vnni, avx512bf16
LIBRARY_VARIABLE = "KINEMA_CPU_LIBRARY"  # another build of the library: make sanitize
LIBRARY = Path(os.environ.get(LIBRARY_VARIABLE) or Path(__file__).with_name("libkinema_cpu.so"))

F32, BF16, F16, E4M3, I8 = range(5)
DTYPES = {
    torch.float32: F32,
    torch.bfloat16: BF16,
    torch.float16: F16,
    torch.float8_e4m3fn: E4M3,
    torch.int8: I8,
}
ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3, "silu": 4}

INTERRUPTED = 8

WITH_WORKSPACE = ("linear", "attention", "patch_embed", "conv3d", "norm_modulate", "scheduler_step")
OPS = (*WITH_WORKSPACE, "qk_norm_rope", "unpatchify")
# in the order of kinema_op
PROGRAM_OPS = (
    *("linear", "norm_modulate", "qk_norm_rope", "attention"),
    *("patch_embed", "unpatchify", "conv3d", "scheduler_step"),
)

_POINTER, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "kinema_status_text": (ctypes.c_char_p, [_INT32]),
    "kinema_cpu_isa_name": (ctypes.c_char_p, [_INT32]),
    "kinema_cpu_has": (_INT32, [ctypes.c_char_p]),
    "kinema_cpu_create": (_INT32, [ctypes.c_char_p, ctypes.POINTER(_POINTER)]),
    "kinema_cpu_use_threads": (_INT32, [_POINTER, _POINTER]),
    "kinema_activate": (_INT32, [_POINTER, _INT32, _INT64, _POINTER, _POINTER]),
    "kinema_exp": (_INT32, [_POINTER, _INT64, _POINTER, _POINTER]),
    "kinema_linear_packed_bytes": (_INT64, [_POINTER, _INT64, _INT64, _INT32, _INT32]),
    "kinema_linear_code_top": (_INT32, [_POINTER]),
    "kinema_linear_multiplies_bf16": (_INT32, [_POINTER]),
    "kinema_linear_pack": (_INT32, [_POINTER, _INT64, _INT64, _INT32, _INT32, *[_POINTER] * 3]),
    "kinema_winograd_packed_bytes": (_INT64, [_POINTER, _INT64, _INT64, _INT64, _INT32]),
    "kinema_winograd_pack": (_INT32, [_POINTER, _INT64, _INT64, _INT64, _INT32, *[_POINTER] * 3]),
    "kinema_program_create": (_INT32, [_POINTER, _POINTER]),
    "kinema_program_destroy": (None, [_POINTER]),
    "kinema_program_append": (_INT32, [_POINTER, _INT32, _POINTER]),
    "kinema_program_run": (_INT32, [_POINTER, _POINTER]),
    **{f"kinema_{op}": (_INT32, [_POINTER, _POINTER, _POINTER]) for op in OPS},
    **{f"kinema_{op}_workspace": (_INT64, [_POINTER, _POINTER]) for op in WITH_WORKSPACE},
}


@dataclass(frozen=True)
class Cpu:
    """The kernels of one instruction set, and the threads that run them."""

    isa: str
    handle: int
    library: ctypes.CDLL

    def call(self, name: str, arguments: ctypes.Structure) -> None:
        """Call an op that takes a struct of arguments; ValueError with the text of any status but success.

        After Interrupted, or what a signal handler raised, the results and whatever else the op writes to (`out`, a
        residual that it adds to in place, a `cache`) are partly written.
        """
        # this thread's scratch and its recording are in use: a signal handler may call an op too
        scratch, _local.workspace = _local.workspace, None
        recorder, _local.recorder = _local.recorder, None
        try:
            self.check(interruptible(getattr(self.library, name), self.handle, ctypes.byref(arguments)))
        finally:
            _local.workspace, _local.recorder = scratch, recorder
        if recorder is not None:
            recorder.note(self, name, arguments, dict(sys._getframe(1).f_locals))

    def pack(self, name: str, *arguments: int) -> None:
        """Pack a weight: its sizes, source address and destination address."""
        self.check(interruptible(getattr(self.library, name), self.handle, *arguments))

    def ask(self, name: str, arguments: ctypes.Structure) -> int:
        """The bytes that a function asks for, given a struct of arguments; ValueError where the call would fail."""
        return self.size(name, ctypes.byref(arguments))

    def size(self, name: str, *arguments: Any) -> int:
        """The bytes that a function asks for; ValueError with the text of a negative status."""
        found: int = getattr(self.library, name)(self.handle, *arguments)
        if found < 0:
            self.check(-found)
        return found

    def check(self, status: int) -> None:
        if status == INTERRUPTED:
            raise Interrupted("a flag was set: the native call ended before it was done")
        if status:
            raise ValueError(f"native kernel: {_text(self.library, status)}")


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    if not LIBRARY.exists():
        return None, "the native kernels are not built: install a C++ compiler and CMake, then kinema again"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"the native kernels do not load: {error}"
    version = library.kinema_abi_version()
    if version != ABI_VERSION:
        return None, f"the native kernels are of interface {version}, wanted {ABI_VERSION}: install kinema again"
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library, ""


def _text(library: ctypes.CDLL, status: int) -> str:
    text: bytes = library.kinema_status_text(status)
    return text.decode()


def instruction_sets() -> list[str]:
    """Those that this build and this processor both have, best first; empty without a library."""
    library, _ = _load()
    found: list[str] = []
    while library is not None and (name := library.kinema_cpu_isa_name(len(found))) is not None:
        found.append(name.decode())
    return [name for name in found if library is not None and library.kinema_cpu_has(name.encode())]


def _in_use() -> Cpu | str:
    """The kernels in use, or the reason why there are none."""
    return _cpu(_forced.get() or os.environ.get(ISA_VARIABLE) or None)


def described() -> str:
    """The instruction set in use and the others available, or why there is none."""
    found = _in_use()
    if isinstance(found, str):
        return found
    others = [name for name in instruction_sets() if name != found.isa]
    return f"{found.isa}; {ISA_VARIABLE} takes {', '.join(others)} too" if others else found.isa


@lru_cache(maxsize=8)
def _cpu(isa: str | None) -> Cpu | str:
    """The kernels of an instruction set, or why there are none."""
    survive_forks()
    library, reason = _load()
    if library is None:
        return reason
    handle = ctypes.c_void_p()
    status = library.kinema_cpu_create(isa.encode() if isa else None, ctypes.byref(handle))
    if status or handle.value is None:
        return f"{ISA_VARIABLE}={isa}: {_text(library, status)}, wanted one of {', '.join(instruction_sets())}"
    library.kinema_cpu_use_threads(handle, torch_parallel())
    named = isa or instruction_sets()[0]
    return Cpu(named, handle.value, library)


def torch_parallel() -> int | None:
    """The address of GOMP_parallel in torch's OpenMP runtime, to run on torch's own threads; None without OpenMP.

    Those spin for milliseconds after each of torch's operators; a second set of threads would wait for them.
    """
    if not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        found = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(found, ctypes.c_void_p).value


_forced: ContextVar[str | None] = ContextVar("forced_isa", default=None)


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Weights packed and ops run in this block use `isa`: for tests."""
    token = _forced.set(isa)
    try:
        yield
    finally:
        _forced.reset(token)


def cpu() -> Cpu:
    """The kernels in use: the best that the processor supports, or those that KINEMA_CPU_ISA names."""
    found = _in_use()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def cpu_unsupported(target: Target) -> list[str]:
    """Why no native kernel runs on `target`."""
    if target.device.type != "cpu":
        return [f"runs on a CPU; the device is {target.device.type}"]
    found = _in_use()
    if isinstance(found, str):
        return [found]
    if target.precision.activations != torch.float32:
        return [f"takes fp32 between ops, not {target.precision.activations}".replace("torch.", "")]
    return []


def cpu_implementation(op: str, unsupported: Callable[[Target], list[str]] = cpu_unsupported) -> Implementation:
    """The record of `kernels/<op>/cpu.py`, preferred on a CPU in every precision.

    Whole models are faster with all of them (`kinema bench peers`); single small calls may lose some tens of
    microseconds (`kinema bench ops`).
    """
    return Implementation("cpu", f"kinema.ops.{op}.cpu", unsupported)


# ---- memory


class Recorder(Protocol):
    """Notes the native calls of a thread: program.py."""

    def note(self, cpu: Cpu, name: str, arguments: ctypes.Structure, held: dict[str, Any]) -> None:
        """A call that was just made. held: the local variables of the function that made it."""
        ...

    def workspace(self, count: int) -> int:
        """Address of scratch that stays."""
        ...


class _Local(threading.local):
    """Of a thread: its scratch, and what notes its calls."""

    workspace: torch.Tensor | None = None
    recorder: Recorder | None = None


_local = _Local()


@contextmanager
def recorded_by(recorder: Recorder) -> Iterator[None]:
    """This thread's native calls in this block are noted."""
    before, _local.recorder = _local.recorder, recorder
    try:
        yield
    finally:
        _local.recorder = before


def workspace(count: int) -> int:
    """Address of this thread's scratch buffer. It only grows, so repeated steps do not allocate."""
    if _local.recorder is not None:
        return _local.recorder.workspace(count)
    held = _local.workspace
    if held is None or held.numel() < count:
        held = _local.workspace = None  # free the old one first
        held = _local.workspace = aligned_bytes(count)
    return held.data_ptr()


def address(t: torch.Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def fp32(t: torch.Tensor | None) -> torch.Tensor | None:
    """t in fp32 with its last axis contiguous: t itself if it already is."""
    if t is None or (t.dtype == torch.float32 and (t.stride()[-1] == 1 or t.shape[-1] == 1)):
        return t
    return t.float().contiguous()


def dense_fp32(t: torch.Tensor) -> torch.Tensor:
    """t in fp32 and contiguous: t itself if it already is."""
    return t if t.dtype == torch.float32 and t.is_contiguous() else t.float().contiguous()


def rope_table(rope: Rope | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int, int, int]:
    """(cosines, sines, their stride over B, first token, tokens): what rotates queries or keys [B, N, S, D]."""
    if rope is None:
        return None, None, 0, 0, 0
    cosines, sines = dense_fp32(rope.cos), dense_fp32(rope.sin)
    shape = cosines.shape
    stride_b = cosines.stride(0) if len(shape) == 3 and shape[0] > 1 else 0
    return cosines, sines, stride_b, rope.start, shape[-2]


def refuse_gradients(weight: torch.Tensor) -> None:
    """Packing detaches a weight from its autograd graph: a backward pass would silently skip it."""
    if torch.is_grad_enabled() and weight.requires_grad:
        raise ValueError("the native kernels have no gradients, and a weight wants one: use backend='reference'")


@overload
def packable(weight: torch.Tensor) -> torch.Tensor: ...


@overload
def packable(weight: torch.Tensor | None) -> torch.Tensor | None: ...


def packable(weight: torch.Tensor | None) -> torch.Tensor | None:
    """A weight or bias as native code reads it: dense, in fp32, in this process's memory."""
    return None if weight is None else weight.detach().to("cpu", torch.float32).contiguous()


def pack_panels(native: Cpu, rows: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] packed in fp32."""
    refuse_gradients(rows)
    rows = packable(rows)
    shape = (rows.shape[1], rows.shape[0], F32, 0)
    panels = aligned_bytes(native.size("kinema_linear_packed_bytes", *shape))
    native.pack("kinema_linear_pack", *shape, rows.data_ptr(), panels.data_ptr())
    return panels


def check_readable(name: str, t: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    """ValueError unless t is of `dtype` and lies in this process's memory."""
    if t.dtype != dtype or t.device.type != "cpu":
        raise ValueError(f"{name} is {t.dtype} on {t.device}, wanted {dtype} on a CPU")
