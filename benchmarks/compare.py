"""kinema bench compare BASE NEW: what became slower, beyond the noise of both runs; exit code 1 if anything did.

Each is a result file or a git revision. A revision is checked out beside this checkout and its benchmark is run there.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.cli.output import emit, emit_json
from kinema.cli.parser import text
from kinema.errors import RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report

# report fields that say what was asked for; `target` adds the device and precision
SETTINGS = ("configuration", "grid", "text_tokens", "steps", "prompts", "judged", "request")
TOLERANCE = 0.05  # two runs of one program on one machine differ by this much


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="a report that another verb wrote with --json, or a git revision")
    parser.add_argument("new", help="another one, of the same verb and the same model, or a git revision")
    parser.add_argument(
        "--bench",
        type=text,
        metavar="WORDS",
        help="arguments of `kinema bench` that a revision runs (left out: those of the other's file, or 'ops')",
    )
    parser.add_argument("--turns", type=int, default=2, metavar="N", help="runs of each revision (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="SHARE", help="what counts as the same (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    if arguments.tolerance < 0 or arguments.turns < 1:
        raise RequestError(f"tolerance {arguments.tolerance}, {arguments.turns} turns: wanted at least 0 and 1")
    base, new = _reports([arguments.base, arguments.new], arguments.bench, arguments.turns)
    if base["benchmark"] != new["benchmark"]:
        raise RequestError(
            f"{arguments.base} is of bench {base['benchmark']}, {arguments.new} of bench {new['benchmark']}: "
            "wanted two of one verb"
        )
    other = different_settings(base, new)
    if other:
        raise RequestError(f"{arguments.base} and {arguments.new} timed different things: {'; '.join(other)}")
    found = compare(base, new, arguments.tolerance)
    if not found["rows"] and not found["broken"] and not found["vanished"]:
        raise RequestError(f"{arguments.base} timed nothing that {arguments.new} could be compared with")
    if arguments.json:
        emit_json(found)
    else:
        emit(_table(found))
    return 1 if found["slower"] or found["broken"] or found["vanished"] else 0


def _reports(given: Sequence[str], command: str | None, turns: int) -> list[Report]:
    """Reports of files as they are, and of revisions by running them now."""
    from kinema.bench.report import read_report
    from kinema.bench.revisions import checkout, commit_of, measured

    files = [read_report(name) if Path(name).is_file() or name.endswith(".json") else None for name in given]
    names = [name for name, file in zip(given, files, strict=True) if file is None]
    if not names:
        return [file for file in files if file is not None]
    root = checkout()
    commits = [commit_of(name, root) for name in names]
    words = shlex.split(command) if command is not None else ["ops"]
    known = next((file for file in files if file is not None), None)
    if command is None and known is not None:
        words = _without_json(shlex.split(known["command"])[2:])
    made = iter(measured(commits, words, root, turns, lambda line: print(line, file=sys.stderr)))
    return [file if file is not None else next(made) for file in files]


def _without_json(words: Sequence[str]) -> list[str]:
    """A command line without its --json option."""
    kept = [word for word in words if not word.startswith("--json=")]
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    return kept


def different_settings(base: Report, new: Report) -> list[str]:
    """What the two runs were asked for differently: times of such runs cannot be compared."""
    before, after = (
        {**{key: report[key] for key in SETTINGS if key in report}, **report["target"]} for report in (base, new)
    )
    return [f"{name}: {value}, then {after[name]}" for name, value in before.items() if after.get(name, value) != value]


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
        # how many steps fit in the same time is a result, so such a row may vanish
        "vanished": [
            name
            for name, row in before.items()
            if name not in after and "samples" in row and row.get("kind") != "fewer steps"
        ],
        "added": sorted(after.keys() - before.keys()),
        "differences": differences(base, new),
    }


def differences(base: Report, new: Report) -> list[str]:
    """What else changed between the runs, and may be the cause."""
    found = [f"{key}: {base[key]}, then {new[key]}" for key in ("commit", "threads") if base[key] != new[key]]
    found += [f"{which} has changes that are in no commit" for which, r in (("base", base), ("new", new)) if r["dirty"]]
    for key in ("machine", "libraries", "ops"):
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
    lines += [f"{'VANISHED':8} {name:60} timed before, and not in the new report" for name in found["vanished"]]
    lines += [f"added: {name}" for name in found["added"]]
    counts = ", ".join(f"{len(found[what])} {what}" for what in ("slower", "faster", "broken", "vanished"))
    return "\n".join([*lines, f"{counts} of {sum(len(found[what]) for what in ('rows', 'broken', 'vanished'))}"])
