"""The one function that launches Triton kernels.

A launch is a record: kernel, grid, arguments, configuration. On a GPU (and in the interpreter) it runs. On meta tensors
nothing runs, so an op doubles as its own shape-only (fake) kernel. And inside `recording(arch)` it is recorded instead:
that is how the kernels are compiled ahead of time, exactly as production launches them, on a machine without a GPU.

Configurations come from tables. Where a table has candidates, `kinema tune` finds the fastest for a kind of call, and
`select_config` looks that up; it never measures. What an op derives from the sizes of a call (tiles, grid, strides,
descriptors) is `remembered`, so that the next call of its kind only launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar, overload

import torch

from kinema.ops.common import tuned

INTERPRETER = 0  # the "architecture" of the interpreter: small tiles, so that small shapes cross their edges
HIP_ARCHITECTURE = 80  # what an AMD GPU counts as
MOST_PLANS = 4096  # a model's forward has some tens of kinds of calls, and requests come in many sizes
HIP = -1  # the key of a table's entry for AMD, where that of an A100 does not fit


@dataclass(frozen=True)
class Config:
    """Tile sizes (the kernel's constexpr arguments of those names), warps, and stages of the software pipeline."""

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2

    @cached_property
    def launched(self) -> dict[str, Any]:
        """What the compiled kernel is given: the blocks and Triton's options."""
        return {**self.blocks, **options(self)}

    def __str__(self) -> str:
        blocks = ", ".join(f"{name} {size}" for name, size in self.blocks.items())
        return f"{blocks}, {self.warps} warps, {self.stages} stages"


# Keyed by the oldest architecture that an entry serves. The first of several candidates is the default.
Table = Mapping[int, Config | tuple[Config, ...]]


@dataclass(frozen=True)
class Launch:
    """A kernel launch. arguments: by parameter name, constexpr ones included."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    config: Config


@dataclass(frozen=True)
class Plan:
    """What the launches of one kind of call share."""

    grid: tuple[int, ...]
    config: Config
    arguments: Mapping[str, Any]


@dataclass
class Recording:
    """Launches for architecture `arch` (90 for sm_90; hip: an AMD GPU), recorded instead of run."""

    arch: int
    hip: bool = False
    launches: list[Launch] = field(default_factory=list)


@dataclass(frozen=True)
class Visit:
    """A call that took its configuration from a table with candidates. key: the table and the kind of call."""

    table: str
    key: str
    candidates: tuple[Config, ...]


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)
_forced: ContextVar[Mapping[str, Config] | None] = ContextVar("forced", default=None)
_visits: ContextVar[list[Visit] | None] = ContextVar("visits", default=None)


@contextmanager
def recording(arch: int = HIP_ARCHITECTURE, *, hip: bool = False) -> Iterator[Recording]:
    """Record every launch of this block, configured for `arch`; nothing runs. Capability records answer for `arch`."""
    made = Recording(arch, hip)
    token = _recording.set(made)
    try:
        yield made
    finally:
        _recording.reset(token)


@contextmanager
def forced(configs: Mapping[str, Config]) -> Iterator[None]:
    """Use these configurations, by table name, whatever the tables say: for tests and tuning."""
    token = _forced.set(configs)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def watching() -> Iterator[list[Visit]]:
    """Collect the candidates that each launch of this block could choose from."""
    visits: list[Visit] = []
    token = _visits.set(visits)
    try:
        yield visits
    finally:
        _visits.reset(token)


def is_hip() -> bool:
    """Whether launches are for an AMD GPU."""
    recorded = _recording.get()
    return torch.version.hip is not None if recorded is None else recorded.hip


def architecture(device: torch.device) -> int:
    """10·major + minor of the GPU's compute capability (an AMD GPU counts as 80), 0 where there is none."""
    recorded = _recording.get()
    if recorded is not None:
        return recorded.arch
    return INTERPRETER if device.type != "cuda" else _capability(device.index or 0)


@lru_cache(maxsize=16)
def _capability(index: int) -> int:
    if torch.version.hip is not None:
        return HIP_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def select_config(name: str, table: Table, device: torch.device, *shape: int | str) -> Config:
    """The entry of `table` for the newest architecture that is not newer than `device`'s.

    shape: the sizes and words that decide which of several candidates is fastest. It takes the one tuned for such
    calls on this GPU, else the first.
    """
    overriding = _forced.get()
    if overriding is not None and name in overriding:
        return overriding[name]
    entry = candidates(table, architecture(device), hip=is_hip())
    if len(entry) == 1:
        return entry[0]
    key = tuned.key(name, shape)
    visits = _visits.get()
    if visits is not None:
        visits.append(Visit(name, key, entry))
    if _recording.get() is not None or device.type == "meta":  # the same whatever this machine's GPU is
        return entry[0]
    number = tuned.choices(device).candidates.get(key, 0)
    return entry[number] if number < len(entry) else entry[0]


P = TypeVar("P")
Layout = tuple[Sequence[int], Sequence[int]]  # shape and strides


def remembered(make: Callable[..., P]) -> Callable[..., P]:
    """A plan of launches, made once per kind of call: `make`'s arguments, the device first, are all it may depend on.

    It is made anew where launches are recorded, forced or watched, and after `kinema tune`.
    """

    @wraps(make)
    def plan(device: torch.device, *kind: object) -> P:
        if _recording.get() is not None or _forced.get() is not None or _visits.get() is not None:
            return make(device, *kind)
        plans, key = tuned.choices(device).plans, (make, device, *kind)
        found: P | None = plans.get(key)
        if found is None:
            if len(plans) >= MOST_PLANS:
                plans.clear()
            found = plans[key] = make(device, *kind)
        return found

    return plan


@overload
def layout(t: torch.Tensor) -> Layout: ...


@overload
def layout(t: torch.Tensor | None) -> Layout | None: ...


def layout(t: torch.Tensor | None) -> Layout | None:
    """What a plan may depend on."""
    return None if t is None else (t.shape, t.stride())


def candidates(table: Table, arch: int, *, hip: bool = False) -> tuple[Config, ...]:
    """The candidate configurations for architecture `arch`, the default first.

    hip: an AMD GPU, which gets the default only: the other candidates are an A100's.
    """
    entry = table[HIP if hip and HIP in table else max(known for known in table if known <= arch)]
    if isinstance(entry, Config):
        return (entry,)
    return entry[:1] if hip else entry


def options(config: Config) -> dict[str, Any]:
    """Triton's launch options. Fusing a·b + c is set explicitly, since its default is changing."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Arguments may be tuples themselves."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


def launch(kernel: Any, grid: tuple[int, ...], config: Config, **arguments: Any) -> None:
    """Run `kernel` over `grid`; `config`'s blocks are added to its arguments."""
    recorded = _recording.get()
    if recorded is not None:
        recorded.launches.append(Launch(kernel, grid, {**arguments, **config.blocks}, config))
        return
    device = next(_tensors(arguments.values())).device
    if device.type == "meta" or 0 in grid:
        return
    if device.type == "cpu":
        kernel[grid](**arguments, **config.blocks)
    elif device.index is None or device.index == torch.cuda.current_device():  # on which Triton launches
        kernel[grid](**arguments, **config.launched)
    else:
        with torch.cuda.device(device):
            kernel[grid](**arguments, **config.launched)
