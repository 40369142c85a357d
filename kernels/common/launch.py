"""One door through which every Triton kernel is launched.

A launch is a record: kernel, grid, arguments, configuration. On a GPU (and in the interpreter) it runs. Of meta tensors
nothing runs, so an op called on them is its own fake. And inside `recording(arch)` it is kept instead: that is
how the kernels are compiled ahead of time, exactly as production launches them, on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

INTERPRETER = 0  # the "architecture" of the interpreter: small tiles, so that small shapes cross their edges
HIP_ARCHITECTURE = 80  # what a GPU of AMD counts as
HIP = -1  # the key of a table's entry for it, where that of an A100 does not fit


@dataclass(frozen=True)
class Config:
    """Tile sizes (the kernel's constexpr arguments of those names), warps, and stages of the software pipeline."""

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Launch:
    """A kernel as it is to run. arguments: by parameter name, constexpr ones included."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    config: Config


@dataclass
class Recording:
    """What was launched for architecture `arch` (90 for sm_90; hip: a GPU of AMD), kept instead of run."""

    arch: int
    hip: bool = False
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)
_forced: ContextVar[Mapping[str, Config] | None] = ContextVar("forced", default=None)


@contextmanager
def recording(arch: int = HIP_ARCHITECTURE, *, hip: bool = False) -> Iterator[Recording]:
    """Keep every launch of this block, configured for `arch`; nothing runs. Capability records answer for it."""
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


def is_hip() -> bool:
    """Whether launches are for a GPU of AMD."""
    recorded = _recording.get()
    return torch.version.hip is not None if recorded is None else recorded.hip


def architecture(device: torch.device) -> int:
    """10·major + minor of the GPU's compute capability (a GPU of AMD counts as 80), 0 where there is none."""
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


def configure(name: str, table: Mapping[int, Config], device: torch.device) -> Config:
    """The entry of `table` for the newest architecture that is not newer than `device`'s."""
    overriding = _forced.get()
    if overriding is not None and name in overriding:
        return overriding[name]
    if HIP in table and is_hip():
        return table[HIP]
    arch = architecture(device)
    return table[max(known for known in table if known <= arch)]


def options(config: Config) -> dict[str, Any]:
    """What Triton is told besides a kernel's arguments. Fusing a·b + c is said outright: its default is changing."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _tensors(arguments: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    """Arguments may be tuples themselves."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


def launch(kernel: Any, grid: tuple[int, ...], config: Config, **arguments: Any) -> None:
    """Run `kernel` over `grid`; `config`'s blocks are added to its arguments."""
    made = Launch(kernel, grid, {**arguments, **config.blocks}, config)
    recorded = _recording.get()
    if recorded is not None:
        recorded.launches.append(made)
        return
    device = next(_tensors(tuple(arguments.values()))).device
    if device.type == "meta" or 0 in grid:
        return
    if device.type == "cpu":
        kernel[grid](**made.arguments)
        return
    with torch.cuda.device(device):  # Triton launches on the current device
        kernel[grid](**made.arguments, **options(config))
