"""The architectures that kernels are compiled for, and what one multiprocessor of each holds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from triton.backends.compiler import GPUTarget

from kinema.ops.common.launch import Recording, recording


@dataclass(frozen=True)
class Chip:
    """arch: as the launcher counts it. shared: bytes of a multiprocessor, and the most that one program may take.

    warps, programs: the most at a time. From "Technical Specifications per Compute Capability" of the CUDA C++
    Programming Guide; tensor memory is 512 columns (PTX ISA, "Tensor Memory").
    """

    name: str
    arch: int
    target: GPUTarget
    shared: int = 0
    shared_per_program: int = 0
    warps: int = 64
    programs: int = 32

    @property
    def hip(self) -> bool:
        return self.target.backend == "hip"

    def recording(self) -> AbstractContextManager[Recording]:
        """Launches as production makes them on this chip."""
        return recording(self.arch, hip=self.hip)


def _nvidia(arch: int, name: str, shared_kib: int, warps: int, programs: int) -> Chip:
    # a program costs 1 KiB of shared memory more than it asks for
    return Chip(name, arch, GPUTarget("cuda", arch, 32), shared_kib << 10, (shared_kib - 1) << 10, warps, programs)


CHIPS = (
    _nvidia(80, "sm_80", 164, 64, 32),
    _nvidia(89, "sm_89", 100, 48, 24),
    _nvidia(90, "sm_90a", 228, 64, 32),
    _nvidia(100, "sm_100a", 228, 64, 32),
    _nvidia(120, "sm_120a", 100, 48, 32),
    Chip("gfx942", 80, GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10),
)
REGISTERS = 65536  # of a multiprocessor; given to warps in lots of 256
TENSOR_COLUMNS = 512


def programs_at_once(chip: Chip, registers: int, warps: int, shared: int, tensor_columns: int = 0) -> int:
    """How many programs of `warps` warps one NVIDIA multiprocessor runs at a time."""
    per_warp = -(-registers * 32 // 256) * 256
    limits = [chip.programs, chip.warps // warps, REGISTERS // per_warp // warps, chip.shared // (shared + 1024)]
    if tensor_columns:
        limits.append(TENSOR_COLUMNS // tensor_columns)
    return min(limits)
