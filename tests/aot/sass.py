"""Reads a cubin: what its kernel takes of a multiprocessor, and which instructions it is made of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from listing import Instruction, Listing
from triton import knobs

# on tensor cores, by generation: mma.sync, wgmma, tcgen05
MMA = ("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA")

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_LABEL = re.compile(r"^\s*(\.L\w*):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_WIDE = re.compile(r"\.(128|256)(\.|$)")


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and its bytes of stack and local memory."""
    printed = _tool(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin)
    found = _RESOURCES.findall(printed)
    if len(found) != 1:
        raise RuntimeError(f"cuobjdump named {len(found)} kernels, wanted one:\n{printed}")
    registers, stack, local = map(int, found[0])
    return registers, stack + local


def disassemble(cubin: bytes) -> Listing:
    return parse(_tool(knobs.nvidia.nvdisasm.path, "-c", cubin))


def parse(text: str) -> Listing:
    """What `nvdisasm -c` prints."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.search(line):
            opcode, operands = match.groups()
            target = re.search(r"`\((\.L\w*)\)", operands) if opcode.startswith("BRA") else None
            instructions.append(Instruction(opcode, kind(opcode), target[1] if target else None))
    while instructions and instructions[-1].opcode == "NOP":  # padding to a whole cache line
        instructions.pop()
    return Listing(tuple(instructions), labels)


def kind(opcode: str) -> str | None:
    """What the table counts it as: a product on tensor cores, a load or store by width, local memory, ex2."""
    base = opcode.partition(".")[0]
    if base in MMA or base in ("UTMALDG", "UTMASTG", "LDL", "STL"):
        return base
    if base in ("LDG", "LDGSTS", "STG"):
        return f"{base}.128" if _WIDE.search(opcode) else base
    if opcode.startswith("MUFU.EX2"):
        return "MUFU.EX2"
    return "FFMA" if base in ("FFMA", "FFMA2") else None


def _tool(path: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        return subprocess.run([path, option, file.name], check=True, capture_output=True, text=True).stdout
