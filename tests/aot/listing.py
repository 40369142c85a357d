"""A kernel's instructions in order, and its loops."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """opcode: with its modifiers, as in LDG.E.128. kind: what the table counts it as. target: the label it jumps to."""

    opcode: str
    kind: str | None
    target: str | None


@dataclass(frozen=True)
class Listing:
    """labels: the number of the instruction that follows each."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(i.kind for i in self.instructions if i.kind is not None).items()))

    def loops(self) -> list[tuple[Instruction, ...]]:
        """The bodies of all loops: from the target of each backward branch to the branch."""
        found = []
        for at, instruction in enumerate(self.instructions):
            start = self.labels.get(instruction.target) if instruction.target is not None else None
            if start is not None and start < at:  # one that jumps to itself is the end of a kernel
                found.append(self.instructions[start : at + 1])
        return found

    def hottest_loop(self, mma: tuple[str, ...]) -> int:
        """Instructions of the loop that is densest in products, else in loads; of the whole kernel without one."""
        for wanted in (mma, ("FFMA",), LOADS):
            bodies = [body for body in self.loops() if any(i.kind in wanted for i in body)]
            if bodies:
                return len(max(bodies, key=lambda body: (sum(i.kind in wanted for i in body) / len(body), len(body))))
        return len(self.instructions)


LOADS = ("UTMALDG", "LDG.128", "LDGSTS.128", "LDG", "LDGSTS")
WIDE_LOADS = ("UTMALDG", "LDG.128", "LDGSTS.128")
