"""The tables of the Triton kernels that have candidates: what can be tuned, and what must compile."""

from __future__ import annotations

from kinema.ops.common import Op
from kinema.ops.common.capability import Implementation
from kinema.ops.common.launch import Config, Table, candidates
from kinema.ops.plan import OPS


def tables() -> dict[str, Table]:
    """{name: table} of every op whose kernels list theirs as TABLES."""
    found: dict[str, Table] = {}
    for op in OPS:
        implementation = triton_of(op)
        if implementation is not None:
            found.update(getattr(implementation.load(), "TABLES", {}))
    return found


def tunable(arch: int) -> dict[str, tuple[Config, ...]]:
    """{name of a table: its candidates on architecture `arch`, the default first}, where there is a choice."""
    found = {name: candidates(table, arch) for name, table in tables().items()}
    return {name: configs for name, configs in found.items() if len(configs) > 1}


def triton_of(op: Op) -> Implementation | None:
    """The record of kernels/<op>/triton.py, if there is one."""
    return next((i for i in op.implementations if i.backend == "triton"), None)
