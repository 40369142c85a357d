"""Reads the assembly of an AMD GPU: resources of its kernel, and which instructions it is made of."""

from __future__ import annotations

import re

from listing import Instruction, Listing

MMA = ("MFMA",)

_LABEL = re.compile(r"^(\.?L?BB\w+):")
_INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9_]+)\b(.*)$")


def resources(assembly: str) -> tuple[int, int, int]:
    """Vector registers of a thread, its bytes of scratch memory, and the registers that were spilled to it."""

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly does not say .{name}")
        return int(found[1])

    return field("vgpr_count"), field("private_segment_fixed_size"), field("vgpr_spill_count")


def parse(assembly: str) -> Listing:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    code = assembly.split(".Lfunc_end0")[0]
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            opcode, operands = match.groups()
            target = operands.split()[0] if "branch" in opcode and operands.split() else None
            instructions.append(Instruction(opcode, kind(opcode), target))
    return Listing(tuple(instructions), labels)


def kind(opcode: str) -> str | None:
    """In the words of sass.py, so that one table holds both."""
    if opcode.startswith("v_mfma"):
        return "MFMA"
    if re.match(r"(global|buffer)_load_dwordx4", opcode):
        return "LDG.128"
    if re.match(r"(global|buffer)_load", opcode):
        return "LDG"
    if re.match(r"(global|buffer)_store", opcode):
        return "STG.128" if "dwordx4" in opcode else "STG"
    if opcode.startswith("scratch_"):
        return "STL" if "store" in opcode else "LDL"
    if opcode.startswith("v_exp_f32"):
        return "MUFU.EX2"
    return "FFMA" if re.match(r"v_(pk_)?fma(c|k)?_f32", opcode) else None
