"""Compiles every production case for every chip and holds it against the table: `make aot`, `make aot-update`.

Nothing runs, so no GPU is needed. `--quick` is what `make test` runs: the first case of each op on Hopper, large
products on Ada as well, whose tensor cores are others.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # launches say it themselves; this only silences Triton
if os.environ.get("TRITON_INTERPRET") == "1":
    raise SystemExit("TRITON_INTERPRET=1 is set: an interpreted kernel cannot be compiled; unset it")

sys.path.insert(0, str(Path(__file__).parent))

import pages
import table as tables
from builds import build
from chips import CHIPS
from gate import broken, worse
from recorded import Recorded, record, triton_of
from table import Table

from kinema.ops.cases import Case, all_cases

QUICK_CHIPS = dict.fromkeys(("linear", "attention", "conv3d"), ("sm_89", "sm_90a"))  # else Hopper alone
QUICK_PRECISIONS = {"linear": ("bf16", "fp8"), "quantize": ("int8",), "conv3d": ("fp32",), "scheduler_step": ("fp32",)}


def quick(cases: Iterable[Case]) -> Iterator[Case]:
    """The first case of every op, in the precisions that tell most."""
    seen: set[str] = set()
    for case in cases:
        if case.op not in seen:
            seen.add(case.op)
            yield replace(case, precisions=QUICK_PRECISIONS.get(case.op, ("bf16",)))


def complaints(recorded: Iterable[Recorded], made: Table, known: Table | None) -> Iterator[str]:
    """What is broken, and against `known` what got worse or is not in it. Refusals are no complaint, if it has them."""
    for one in recorded:
        for chip in CHIPS:
            if chip.name not in one.jobs:
                continue
            where = f"{one.name}, {chip.name}"
            now = made.measures(one.name, chip.name)
            if isinstance(now, str):
                if isinstance(one.jobs[chip.name], list) and not chip.hip:
                    yield f"{where}: {now}"
            else:
                yield from (f"{where}: {what}" for what in broken(one.case, one.count.unit, chip, now))
            if known is None:
                continue
            if one.name not in known.rows or chip.name not in known.rows[one.name].launches:
                yield f"{where}: not in the table; make aot-update"
                continue
            before = known.measures(one.name, chip.name)
            if isinstance(before, str) or isinstance(now, str):
                if before != now:
                    was, becomes = (what if isinstance(what, str) else "compiled" for what in (before, now))
                    yield f"{where}: was {was!r}, is {becomes!r}; make aot-update if that is meant"
            elif len(before) != len(now):
                yield f"{where}: was {len(before)} launches, is {len(now)}; make aot-update if that is meant"
            else:
                for old, new in zip(before, now, strict=True):
                    yield from (f"{where}: {what}" for what in worse(old, new))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="rewrite the table and the pages made of it")
    parser.add_argument("--quick", action="store_true", help="one case of each op on one or two chips")
    parser.add_argument("--op", action="append", help="only this op; may be given several times")
    parser.add_argument("--chip", action="append", choices=[c.name for c in CHIPS], help="only this one; likewise")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="side by side (%(default)s)")
    arguments = parser.parse_args()
    whole = not (arguments.quick or arguments.op or arguments.chip)
    if arguments.update and not whole:
        parser.error("--update rewrites the whole table: leave --quick, --op and --chip out")

    started = time.monotonic()
    cases = [case for case in all_cases() if not arguments.op or case.op in arguments.op]
    chips = [chip for chip in CHIPS if chip.name in (arguments.chip or [c.name for c in CHIPS])]
    if arguments.quick:
        cases = list(quick(cases))
    without = sorted({case.op for case in cases if triton_of(case.op) is None})
    if without:
        print(f"without a Triton kernel: {', '.join(without)}")
    recorded = []
    for case in cases:
        wanted = QUICK_CHIPS.get(case.op, ("sm_90a",)) if arguments.quick else [chip.name for chip in chips]
        recorded += record([case], [chip for chip in chips if chip.name in wanted])
    jobs = [job for one in recorded for made in one.jobs.values() if isinstance(made, list) for job in made]
    found = build(jobs, processes=arguments.processes, report=lambda line: print(line, flush=True))
    made = tables.make(recorded, found)
    known = tables.load() if tables.FILE.is_file() and not arguments.update else None
    if known is not None and known.triton != made.triton:
        print(f"the table is of Triton {known.triton}, this is {made.triton}: kernels are not compared with it")
        known = None
    wrong = list(complaints(recorded, made, known))
    if known is not None and whole:
        wrong += [
            f"{name}: in the table, but no case makes it; make aot-update" for name in known.rows.keys() - made.rows
        ]
    if arguments.update:
        tables.save(made)
        pages.write(made)
    print("\n".join(wrong) or "no complaints")
    seconds = time.monotonic() - started
    print(
        f"{len(made.rows)} cases, {len(jobs)} launches, {len(found)} builds, {len(wrong)} complaints, {seconds:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
