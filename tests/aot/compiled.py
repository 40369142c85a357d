"""Compiles a recorded launch for a chip that is not here, exactly as Triton's JIT would when it is launched there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import triton
from chips import Chip
from triton.backends.compiler import BaseBackend
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.cache import get_cache_key
from triton.runtime.jit import create_function_from_signature

from kinema.ops.common.launch import Launch, options


@dataclass(frozen=True)
class Job:
    """One compilation. key: its content, the kernel's source and everything that shapes the code made of it."""

    source: ASTSource
    chip: Chip
    grid: tuple[int, ...]
    options: dict[str, Any]
    key: str

    @property
    def kernel(self) -> str:
        return str(self.source.name)

    def compile(self) -> CompiledKernel:
        return triton.compile(self.source, target=self.chip.target, options=self.options)


def job(launch: Launch, chip: Chip) -> Job:
    """What JITFunction.run would compile for `launch`: argument types, constants, multiples of 16, ones."""
    kernel, backend = launch.kernel, _backend(chip)
    given = {**options(launch.config), "debug": False}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments, specialization, _ = bind(**launch.arguments, **given)
    parsed, signature, constants, attributes = kernel._pack_args(backend, given, arguments, specialization, None)
    source = ASTSource(kernel, signature, constants, attributes)
    key = get_cache_key(source, backend, parsed, env_vars={})
    return Job(source, chip, launch.grid, parsed.__dict__, hashlib.sha256(key.encode()).hexdigest()[:24])


_backends: dict[str, BaseBackend] = {}


def _backend(chip: Chip) -> BaseBackend:
    return _backends.setdefault(chip.name, make_backend(chip.target))
