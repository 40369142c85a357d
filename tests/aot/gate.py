"""What must hold of every compiled kernel, and what must not get worse than the checked-in table says."""

from __future__ import annotations

from collections.abc import Sequence

from chips import TENSOR_COLUMNS, Chip
from listing import WIDE_LOADS
from measure import Measure

from kinema.bench.op_counts import Unit
from kinema.ops.cases import Case

OPS_WITH_PRODUCTS = ("attention", "conv3d", "linear", "patch_embed")
# the tensor cores' instruction for products of a unit. fp32 may stay off them, or go in parts; the table knows
PRODUCTS: dict[str, dict[Unit, str]] = {
    "sm_80": {"bf16": "HMMA", "int8": "IMMA"},
    "sm_89": {"bf16": "HMMA", "int8": "IMMA", "fp8": "QMMA"},
    "sm_90a": {"bf16": "HGMMA", "int8": "IGMMA", "fp8": "QGMMA"},
    "sm_100a": {"bf16": "UTCHMMA", "int8": "UTCIMMA", "fp8": "UTCQMMA"},
    "sm_120a": {"bf16": "HMMA", "int8": "IMMA", "fp8": "QMMA"},
    "gfx942": {"bf16": "MFMA", "int8": "MFMA", "fp8": "MFMA"},
}
# mma.sync, where a tile has too few rows for the instructions above; Hopper and B200 have none of e4m3, and widen it
FEW_ROWS: dict[str, dict[Unit, str]] = {
    "sm_90a": {"bf16": "HMMA", "int8": "IMMA", "fp8": "HMMA"},
    "sm_100a": {"bf16": "HMMA", "int8": "IMMA", "fp8": "HMMA"},
}
GROWTH = 1.05


def broken(case: Case, unit: Unit, chip: Chip, launches: Sequence[Measure]) -> list[str]:
    """What is wrong with a call's kernels on their own, whatever the table says."""
    wrong = []
    for m in launches:
        # what AMD's compiler spills may go to accumulation registers, and then costs no memory
        if m.local or (m.spills and not chip.hip):
            wrong.append(f"{m.kernel} spills: {m.spills} loads and stores of {m.local} bytes of local memory")
        if m.shared > chip.shared_per_program:
            wrong.append(f"{m.kernel} wants {m.shared} bytes of shared memory, there are {chip.shared_per_program}")
        if m.tensor_columns > TENSOR_COLUMNS:
            wrong.append(f"{m.kernel} wants {m.tensor_columns} columns of tensor memory, there are {TENSOR_COLUMNS}")
        # AMD's compiler splits and joins loads in its own ways
        if case.narrow is None and not chip.hip and not any(m.counts.get(kind) for kind in WIDE_LOADS):
            wrong.append(f"{m.kernel} has no 128-bit loads")
    wanted = expected_products(case, unit, chip)
    if wanted is not None and not any(m.counts.get(wanted) for m in launches):
        found = sorted({kind for m in launches for kind in m.counts if "MMA" in kind or kind == "MFMA"})
        wrong.append(f"no {wanted} for products of {unit}, only {', '.join(found) or 'none on tensor cores'}")
    return wrong


def expected_products(case: Case, unit: Unit, chip: Chip) -> str | None:
    """The instruction that a call must use on tensor cores, if any."""
    if case.op not in OPS_WITH_PRODUCTS:
        return None
    few = FEW_ROWS.get(chip.name) if case.few_rows else None
    return (few or PRODUCTS[chip.name]).get(unit)


def worse(known: Measure, now: Measure) -> list[str]:
    """How a kernel fell behind its row of the table."""
    wrong = []
    for kind, count in known.counts.items():
        if count and not now.counts.get(kind) and ("MMA" in kind or kind == "MFMA" or kind in WIDE_LOADS):
            wrong.append(f"{now.kernel} lost its {count} {kind}")
    if now.loop > GROWTH * known.loop:
        percent = 100 * (now.loop / known.loop - 1)
        wrong.append(
            f"{now.kernel}: its inner loop grew by {percent:.0f} %, from {known.loop} to {now.loop} instructions"
        )
    return wrong
