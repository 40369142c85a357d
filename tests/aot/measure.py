"""What a compiled kernel is made of, as far as it decides speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import amdgcn
import sass
from triton.compiler import CompiledKernel


@dataclass(frozen=True)
class Measure:
    """registers: of a thread. local: its bytes of stack, local or scratch memory. spills: registers that went there.

    shared: bytes of a program; tensor_columns: of tensor memory. loop: instructions of the hottest loop (of the whole
    kernel if it has none). counts: instructions of the kinds that listing and gate know.
    """

    kernel: str
    warps: int
    registers: int
    shared: int
    tensor_columns: int
    local: int
    spills: int
    instructions: int
    loop: int
    counts: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Measure:
        return Measure(**values)


def measure(compiled: CompiledKernel) -> Measure:
    metadata = compiled.metadata
    if "cubin" in compiled.asm:
        listing, mma = sass.disassemble(compiled.asm["cubin"]), sass.MMA
        registers, local = sass.resources(compiled.asm["cubin"])
        spills = sum(listing.counts().get(kind, 0) for kind in ("LDL", "STL"))
    else:
        listing, mma = amdgcn.parse(compiled.asm["amdgcn"]), amdgcn.MMA
        registers, local, spills = amdgcn.resources(compiled.asm["amdgcn"])
    return Measure(
        kernel=compiled.src.fn.__name__,
        warps=metadata.num_warps,
        registers=registers,
        shared=metadata.shared,
        tensor_columns=getattr(metadata, "tmem_size", None) or 0,
        local=local,
        spills=spills,
        instructions=len(listing.instructions),
        loop=listing.hottest_loop(mma),
        counts=listing.counts(),
    )
