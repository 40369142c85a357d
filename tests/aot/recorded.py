"""Production cases as the launches they make on every chip, or the reason why the capability record refuses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from chips import Chip
from compiled import Job, job

from kinema.bench.op_counts import Count, count
from kinema.ops.calls import Inputs
from kinema.ops.cases import Case
from kinema.ops.common import PRECISIONS, Implementation, Target
from kinema.ops.plan import OPS

META = torch.device("meta")


@dataclass(frozen=True)
class Recorded:
    """One case in one precision. jobs: by chip's name its launches in order, or why the chip is refused."""

    case: Case
    precision: str
    count: Count
    jobs: dict[str, list[Job] | str]

    @property
    def name(self) -> str:
        return f"{self.case.op}: {self.case.name}, {self.precision}"


def record(cases: Iterable[Case], chips: Iterable[Chip]) -> Iterator[Recorded]:
    """Nothing runs: ops are called on meta tensors. Ops without a Triton kernel are passed over."""
    chips = tuple(chips)
    for case in cases:
        implementation = triton_of(case.op)
        if implementation is not None:
            for precision in case.precisions:
                yield _record(case, precision, implementation, chips)


def _record(case: Case, precision: str, implementation: Implementation, chips: tuple[Chip, ...]) -> Recorded:
    target = Target(META, PRECISIONS["cuda"][precision])
    call = case.prepare(implementation.load(), target, Inputs(META))
    counted = count(case.op, call, call())
    jobs: dict[str, list[Job] | str] = {}
    for chip in chips:
        with chip.recording() as made:
            reasons = implementation.unsupported(target)
            if not reasons:
                call()
        jobs[chip.name] = "; ".join(reasons) or [job(launch, chip) for launch in made.launches]
    return Recorded(case, precision, counted, jobs)


@lru_cache(maxsize=16)
def triton_of(op: str) -> Implementation | None:
    """The record of kernels/<op>/triton.py, if there is one."""
    (known,) = (o for o in OPS if o.name == op)
    return next((i for i in known.implementations if i.backend == "triton"), None)
