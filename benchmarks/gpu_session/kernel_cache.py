"""Builds the Triton kernels of production cases into Triton's own cache, in parallel, for a GPU that may be absent.

    python -m kinema.bench.gpu_session.kernel_cache FOLDER [--arch 90] [--only TEXT] [--lean]

Each is launched with Triton's `warmup` on a driver that only knows the architecture, so the build and its cache key are
those of a launch on the GPU. Builds of another machine are used if they come from the same Triton, the same wheel for
the same Python, since the key contains the compiler's binary. Prints how many kernels there are, and a JSON line for
each.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinema.ops.calls import Inputs
from kinema.ops.cases import all_cases
from kinema.ops.common import PRECISIONS, Implementation, Target
from kinema.ops.common.launch import Launch, forced, options, recording, watching
from kinema.ops.plan import OPS

META = torch.device("meta")
NEEDED = (".json", ".cubin")  # of a cached kernel: the rest is intermediate
WANTED = ("bf16", "fp32", "fp8")  # what the questions ask for
TUNED = ("1.3B 32760", "1.3B in e4m3", "VAE")  # cases that are also built with the other candidates of their tables


@dataclass(frozen=True)
class Built:
    """One kernel. taken: the cache had it. failed: what the compiler said instead."""

    kernel: str
    case: str
    seconds: float
    taken: bool = False
    failed: str | None = None


def launches(arch: int, only: str = "") -> Iterator[tuple[str, Launch]]:
    """(case, launch) of everything that production launches there, once each; the most common first.

    only: of cases with this in their name, which is "op: case, precision".
    """
    seen = set()
    for precision in WANTED:
        target = Target(META, PRECISIONS["cuda"][precision])
        for case in all_cases():
            triton, name = _triton(case.op), f"{case.op}: {case.name}, {precision}"
            if precision not in case.precisions or triton is None or only not in name:
                continue
            call = case.prepare(triton.load(), target, Inputs(META))
            with recording(arch) as made, watching() as visits:
                if triton.unsupported(target):
                    continue
                call()
                for visit in visits if case.name.startswith(TUNED) else ():
                    for config in visit.candidates[1:]:
                        with forced({visit.table: config}):
                            call()
            for launch in made.launches:
                if (key := _key(launch)) not in seen:
                    seen.add(key)
                    yield name, launch


def take(built: Path, cache: Path) -> int:
    """Copy kernels that were built into another folder to `cache`. Triton would not find them as they are: its lists of
    a kernel's files hold absolute paths. Returns how many kernels there are."""
    for group in built.glob("*/__grp__*.json"):
        target = cache / group.parent.name
        target.mkdir(parents=True, exist_ok=True)
        files = [path for path in group.parent.iterdir() if path.suffix in NEEDED and path != group]
        for path in files:
            shutil.copy2(path, target)
        listed = {"child_paths": {path.name: str(target.resolve() / path.name) for path in files}}
        (target / group.name).write_text(json.dumps(listed), encoding="utf-8")
    return sum(1 for _ in cache.glob("*/__grp__*.json"))


def _triton(op: str) -> Implementation | None:
    (known,) = (o for o in OPS if o.name == op)
    return next((i for i in known.implementations if i.backend == "triton"), None)


def build(found: list[tuple[str, Launch]], arch: int, processes: int, until: float) -> Iterator[Built]:
    """Each in a process of its own, which a compiler may abort. until: when no more are started."""
    with contextlib.suppress(ImportError):  # Triton's hash of itself takes a second: do it once, before forking
        from triton.runtime.cache import triton_key

        triton_key()
    waiting = list(found)
    running: dict[int, tuple[str, Launch, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes and time.perf_counter() < until:
            case, launch = waiting.pop(0)
            running[_start(launch, case, arch)] = (case, launch, time.perf_counter())
        if not running:
            return
        child, status = os.wait()
        case, launch, started = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        if code:  # else the process has said it itself
            seconds = time.perf_counter() - started
            yield Built(launch.kernel.__name__, case, seconds, failed=f"the compiler ended with {code}")


def _key(launch: Launch) -> tuple[Any, ...]:
    """What Triton distinguishes builds by, or a little more."""
    parameters = {parameter.name: parameter for parameter in launch.kernel.params}
    arguments = tuple(_kind(value, parameters[name]) for name, value in launch.arguments.items())
    return launch.kernel.__name__, arguments, str(launch.config)


def _kind(value: Any, parameter: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, tuple):
        return tuple(_kind(item, parameter) for item in value)
    if parameter.is_constexpr or value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, float):
        return "float"
    if isinstance(value, int):
        wide = value >= 1 << 31
        return wide if parameter.do_not_specialize else (wide, value == 1, value % 16 == 0)
    return value.base.dtype, tuple(value.block_shape)  # a descriptor


def _start(launch: Launch, case: str, arch: int) -> int:
    """Fork a process that builds one kernel. Returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.nice(10)
        _say(_build(launch, case, arch))
        code = 0
    finally:
        os._exit(code)


def _build(launch: Launch, case: str, arch: int) -> Built:
    import triton

    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    triton.runtime.driver.set_active(_absent(arch))
    name, started = launch.kernel.__name__, time.perf_counter()
    try:
        _launcher(launch.kernel.warmup(grid=launch.grid, **launch.arguments, **options(launch.config)))
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Built(name, case, time.perf_counter() - started, failed=reason)
    return Built(name, case, time.perf_counter() - started, taken=bool(hits) and all(hits))


def _launcher(built: Any) -> None:
    """The C code that a launch goes through, which Triton 3.6 compiles for each signature; where there is a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(built.src, built.metadata)


def _absent(arch: int) -> Any:
    """A driver for a GPU that is not present."""
    from triton.backends.compiler import GPUTarget

    class Absent:
        get_current_device: Callable[[Absent], int] = lambda self: 0
        get_current_stream: Callable[[Absent, int], int] = lambda self, device: 0
        get_current_target: Callable[[Absent], Any] = lambda self: GPUTarget("cuda", arch, 32)

    return Absent()


def _say(built: Built) -> None:
    os.write(sys.stdout.fileno(), json.dumps(vars(built)).encode() + b"\n")  # one write, as several processes print


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="the cache")
    parser.add_argument("--arch", type=int, default=90, help="10·major + minor of the compute capability (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no kernel after that")
    parser.add_argument("--lean", action="store_true", help="keep only what a launch needs of each kernel")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    arguments = parser.parse_args()
    started = time.perf_counter()
    os.environ["TRITON_CACHE_DIR"] = str(arguments.folder.resolve())
    found = list(launches(arguments.arch, arguments.only))
    print(json.dumps({"wanted": len(found)}), flush=True)
    for lost in build(found, arguments.arch, arguments.processes, started + arguments.seconds):
        _say(lost)
    for path in arguments.folder.glob("*/*") if arguments.lean else ():
        if path.suffix not in NEEDED:
            path.unlink()


if __name__ == "__main__":
    main()
