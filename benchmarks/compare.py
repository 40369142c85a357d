"""kinema bench compare BASE NEW: what became slower, beyond the noise of both runs; exit code 1 if anything did."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kinema.commands.output import emit, emit_json
from kinema.errors import RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report

TOLERANCE = 0.05  # two runs of one program on one machine differ by this much


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="a report that another verb wrote with --json")
    parser.add_argument("new", help="another one, of the same verb")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="SHARE", help="what counts as the same (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.report import read_report

    if arguments.tolerance < 0:
        raise RequestError(f"tolerance {arguments.tolerance}: wanted 0 or more")
    base, new = read_report(arguments.base), read_report(arguments.new)
    if base["benchmark"] != new["benchmark"]:
        raise RequestError(
            f"{arguments.base} is of bench {base['benchmark']}, {arguments.new} of bench {new['benchmark']}: "
            "wanted two of one verb"
        )
    found = compare(base, new, arguments.tolerance)
    if not found["rows"] and not found["broken"]:
        raise RequestError(f"{arguments.base} and {arguments.new} have no row in common that both timed")
    if arguments.json:
        emit_json(found)
    else:
        emit(_table(found))
    return 1 if found["slower"] or found["broken"] else 0


def compare(base: Report, new: Report, tolerance: float = TOLERANCE) -> Report:
    """Each row that both timed, with its speed-up and verdict; rows that stopped working; what differs around them."""
    from kinema.bench.intervals import unpaired_ratio, verdict

    before, after = ({row["name"]: row for row in report.get("rows", [])} for report in (base, new))
    rows, broken = [], []
    for name, row in before.items():
        if "samples" not in row or name not in after:
            continue
        other = after[name]
        if "samples" not in other:
            broken.append({"name": name, "why": other.get("refused") or other.get("failed") or "it was not timed"})
            continue
        ratio = unpaired_ratio(row["samples"], other["samples"])
        rows.append({"name": name, **ratio.as_dict(), "verdict": verdict(ratio, tolerance)})
    return {
        "rows": rows,
        "slower": [row["name"] for row in rows if row["verdict"] == "slower"],
        "faster": [row["name"] for row in rows if row["verdict"] == "faster"],
        "broken": broken,
        "missing": sorted(before.keys() - after.keys()),
        "added": sorted(after.keys() - before.keys()),
        "differences": differences(base, new),
    }


def differences(base: Report, new: Report) -> list[str]:
    """What else changed between the runs, and may be why."""
    found = [f"{key}: {base[key]}, then {new[key]}" for key in ("commit", "threads") if base[key] != new[key]]
    found += [f"{which} has changes that are in no commit" for which, r in (("base", base), ("new", new)) if r["dirty"]]
    for key in ("machine", "libraries", "target"):
        was, now = base[key], new[key]
        found += [
            f"{name}: {was.get(name)}, then {now.get(name)}"
            for name in sorted({*was, *now} - {"memory"})
            if was.get(name) != now.get(name)
        ]
    return found


def _table(found: Report) -> str:
    from kinema.bench.intervals import Estimate, said

    lines = [f"differs: {difference}" for difference in found["differences"]]
    for row in found["rows"]:
        speedup = said(Estimate(row["median"], row["low"], row["high"]))
        lines.append(
            f"{row['verdict'].upper() if row['verdict'] == 'slower' else row['verdict']:8} {row['name']:60} {speedup}"
        )
    lines += [f"{'BROKEN':8} {row['name']:60} {row['why']}" for row in found["broken"]]
    lines += [f"{what}: {name}" for what in ("missing", "added") for name in found[what]]
    counts = ", ".join(f"{len(found[what])} {what}" for what in ("slower", "faster", "broken"))
    return "\n".join([*lines, f"{counts} of {len(found['rows']) + len(found['broken'])}"])
