"""Makes the functions that models call, of a plan."""

from __future__ import annotations

from typing import Any

from kinema.ops.plan import OPS, implementation_of
from kinema.ops.table import Ops, Plan


def build_ops(plan: Plan) -> Ops:
    """Import the chosen implementations and bind their functions."""
    functions: dict[str, Any] = {}
    for op in OPS:
        module = implementation_of(plan, op.name).load()
        functions.update({name: getattr(module, name) for name in op.functions})
    packs = {name: functions.pop(name) for name in list(functions) if name.startswith("pack_")}
    ops = Ops(plan=plan, _pack=packs, _planned=dict(functions), **functions)
    if plan.target.device.type != "cuda":
        return ops
    from kinema.ops.torch_compile import compilable

    return compilable(ops)
