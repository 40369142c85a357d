"""The two sessions: a GPU, and a CPU that stands in for one; only clock and device calls differ."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from kinema.bench import gate
from kinema.bench.gpu_session import nvml
from kinema.bench.gpu_session.question import Activity, Peak
from kinema.bench.gpu_session.results import wrong_fields
from kinema.bench.gpu_session.worker import Send
from kinema.buffers.machine import held_bytes
from kinema.buffers.peak import peak_bytes
from kinema.ops.tuner import GpuTimer

T = TypeVar("T")
Call = Callable[[], Any]
WARMUP, WARM_SECONDS = 3, 0.5  # warm-up calls, fewer if they take longer than that
BUSY = 1_000_000  # cycles: longer than the host takes to launch a call of a few kernels
DRY_SAMPLES = 2
# categories of GPU work in torch's traces, and what stands in for it on a CPU
DONE = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}


@dataclass
class _Session(ABC):
    """What both share: reporting a question's results. send: takes the lines."""

    question: str
    folder: Path
    send: Send
    device: torch.device
    _started: float
    _said: set[str] = field(default_factory=set)
    _errors: dict[str, gate.Distance] = field(default_factory=dict)

    def report(self, case: str, **fields: Any) -> None:
        wrong = wrong_fields(fields)
        if wrong is not None:
            raise ValueError(f"{case!r}: {wrong}")
        error = {"error": self._errors[case].as_dict()} if case in self._errors else {}
        self._line(case, fields, **error)

    def skip(self, case: str, reason: str) -> None:
        self._line(case, {}, skipped=reason)

    def check(
        self, case: str, result: Any, truth: Any, *, plain: Any = None, quantized: torch.dtype | None = None
    ) -> bool:
        found = gate.distance(result, truth)
        exact = gate.Distance(0.0, 0.0) if plain is None else gate.distance(plain, truth)
        refusal = gate.refusal(found, gate.allowance(exact, _dtype(result), quantized))
        if refusal is None:
            self._errors[case] = found
            return True
        # JSON has no infinity; the refusal's text says it
        error = {name: value for name, value in found.as_dict().items() if value < float("inf")}
        self._line(case, {}, refused=refusal, **({"error": error} if error else {}))
        return False

    @abstractmethod
    def clocks(self) -> dict[str, float]:
        """The device's clocks now, in MHz by name."""

    def _line(self, case: str, fields: dict[str, Any], **more: Any) -> None:
        if case in self._said:
            raise ValueError(f"{case!r} is reported twice, or though its result was refused")
        self._said.add(case)
        at = time.perf_counter() - self._started
        line = {"kind": "result", "question": self.question, "case": case, "at": at}
        self.send({**line, "fields": fields, "clocks": self.clocks(), **more})


class GpuSession(_Session):
    """The current GPU."""

    dry = False

    def __init__(self, question: str, folder: Path, send: Send, started: float) -> None:
        super().__init__(question, folder, send, torch.device("cuda", torch.cuda.current_device()), started)
        self._gpu = nvml.Gpu(str(torch.cuda.get_device_properties(self.device).uuid))
        self._timer: GpuTimer | None = None

    def pick(self, full: T, small: T) -> T:
        return full

    def seconds(self, call: Call, *, samples: int = 9, flush: bool = True) -> list[float]:
        self._warm(call)
        if not flush:
            return [self._busy_seconds(call) for _ in range(samples)]
        self._timer = self._timer or GpuTimer(self.device)
        return [self._timer(call) for _ in range(samples)]

    def host_seconds(self, call: Call, *, samples: int = 9, calls: int = 50) -> list[float]:
        self._warm(call)
        taken = []
        for _ in range(samples):
            torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            for _ in range(calls):
                call()
            taken.append((time.perf_counter() - started) / calls)
        return taken

    def profile(self, call: Call) -> list[Activity]:
        def finished() -> None:
            call()
            torch.cuda.synchronize(self.device)

        finished()
        return _profile(finished, "cuda", self.folder)

    def record(self, call: Call) -> Callable[[], None]:
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = call()

        def replay(kept: Any = result) -> None:  # keeps the graph's output alive, as the graph writes to it
            graph.replay()

        return replay

    def peak(self, call: Call) -> Peak:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        allocated = torch.cuda.max_memory_allocated(self.device)
        return Peak(before, allocated, torch.cuda.max_memory_reserved(self.device))

    def clocks(self) -> dict[str, float]:
        return self._gpu.clocks()

    def _warm(self, call: Call) -> None:
        started = time.perf_counter()
        for _ in range(WARMUP):
            call()
            torch.cuda.synchronize(self.device)
            if time.perf_counter() - started > WARM_SECONDS:
                return

    def _busy_seconds(self, call: Call) -> float:
        """With warm caches. The GPU is kept busy until the host has launched all of the call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(BUSY)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class DrySession(_Session):
    """A CPU. Times are of its own clock and mean nothing; all else is as on a GPU, at small sizes."""

    dry = True

    def __init__(self, question: str, folder: Path, send: Send, started: float) -> None:
        super().__init__(question, folder, send, torch.device("cpu"), started)

    def pick(self, full: T, small: T) -> T:
        return small

    def seconds(self, call: Call, *, samples: int = 9, flush: bool = True) -> list[float]:
        taken = []
        for _ in range(min(samples, DRY_SAMPLES)):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        return taken

    def host_seconds(self, call: Call, *, samples: int = 9, calls: int = 50) -> list[float]:
        return self.seconds(call, samples=samples)

    def profile(self, call: Call) -> list[Activity]:
        return _profile(call, "cpu", self.folder)

    def record(self, call: Call) -> Callable[[], None]:
        return lambda: (call(), None)[1]

    def peak(self, call: Call) -> Peak:
        before = held_bytes(self.device)
        call()
        most = peak_bytes(self.device)
        return Peak(before, most, most)

    def clocks(self) -> dict[str, float]:
        return {}


def _dtype(result: Any) -> torch.dtype:
    """Of the numbers that a result stands for."""
    if isinstance(result, torch.Tensor):
        return result.dtype
    return _dtype(result.dequantize() if hasattr(result, "dequantize") else next(iter(result)))


def _profile(call: Call, kind: str, folder: Path) -> list[Activity]:
    """From the trace that torch exports, whose format is stable; the trace stays in `folder`."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kind == "cuda" else [])]
    with profile(activities=activities) as profiler:
        call()
    path = folder / f"trace{len(list(folder.glob('trace*.json')))}.json"
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = sorted((e["ts"], e["dur"], e["name"]) for e in events if e.get("cat") in DONE[kind])
    return [Activity(name, (start - found[0][0]) / 1e6, duration / 1e6) for start, duration, name in found]
