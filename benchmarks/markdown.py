"""kinema bench report: Markdown tables and plots of the JSON that the other verbs wrote."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.bench.cells import duration, row
from kinema.cli.output import emit
from kinema.errors import OutputError, RequestError

if TYPE_CHECKING:
    from kinema.bench.report import Report

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str | None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", metavar="FILE", help="reports that other verbs wrote with --json")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the Markdown here instead of printing it")
    parser.add_argument(
        "--readme", metavar="FILE", help="write the tables between the comments of this file that mark its performance"
    )
    parser.add_argument("--plots", metavar="FOLDER", help="draw what can be drawn into this folder (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.plots import draw
    from kinema.bench.readme import write_section
    from kinema.bench.report import read_report

    reports, sections = [], []
    for path in arguments.reports:
        if path.endswith(".jsonl"):
            sections.append(_session(path, arguments.readme))
        else:
            reports.append(read_report(path))
            sections.append(section(reports[-1]))
    page = "\n\n".join(sections)
    if arguments.plots is not None:
        beside = Path(arguments.output).parent if arguments.output is not None else Path()
        drawn, without = draw(reports, Path(arguments.plots))
        page += "".join(f"\n\n{reason}" for reason in without)
        for title, path in drawn:
            page += f"\n\n![{title}]({Path(os.path.relpath(path, beside)).as_posix()})"
    if arguments.readme is not None:
        write_section(arguments.readme, f"{page}\n\n{written_by(arguments.words)}")
    if arguments.output is None:
        if arguments.readme is None:
            emit(page)
        return 0
    try:
        Path(arguments.output).write_text(page + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {arguments.output}: {error.strerror or error}") from error
    return 0


def _session(path: str, document: str | None) -> str:
    """A file of `kinema bench gpu-session` as Markdown. Raises RequestError for a rehearsal meant for a document."""
    from kinema.bench.gpu_session.report import rehearsed
    from kinema.bench.gpu_session.report import section as session_section
    from kinema.bench.gpu_session.results import read

    lines = read(Path(path))
    if document is not None and rehearsed(lines):
        raise RequestError(f"{path} is of a rehearsal on a CPU: none of its times belongs in {document}")
    return session_section(lines)


def written_by(words: Sequence[str]) -> str:
    """The line that names the command. words: after `kinema`."""
    return f"*This section is written by `{shlex.join(['kinema', *words])}`.*"


def section(report: Report) -> str:
    """What was timed where, and one table; a column that no row has is left out."""
    machine, target = report["machine"], report["target"]
    commit = report["commit"] or "no commit"
    lines = [
        f"`{report['command']}`",
        "",
        f"Timed: {report['timed']}. {machine['processor']}, {machine['instructions']}, {report['threads']} threads, "
        f"{target['device']}; torch {report['libraries']['torch']}; kinema {report['kinema']}, {commit}"
        f"{' with changes' if report['dirty'] else ''}, {report['time'][:10]}.",
        "",
    ]
    return "\n".join([*lines, *table(report.get("rows", []))])


def table(rows: Sequence[Row]) -> list[str]:
    columns = [(title, cells) for title, cell in COLUMNS if any(cells := [cell(row) for row in rows])]
    if not columns:
        return ["Nothing was timed."]
    lines = [row([title for title, _ in columns]), row(["---", *["---:"] * (len(columns) - 1)])]
    return [*lines, *(row([cells[i] or "" for _, cells in columns]) for i in range(len(rows)))]


def _name(row: Row) -> str | None:
    return f"{row['name']} (dominated)" if row.get("dominated") else str(row["name"])


def _median(row: Row) -> str | None:
    if "seconds" not in row:
        return row.get("refused") or row.get("failed")
    return duration(row["seconds"]["median"])


def _interval(row: Row) -> str | None:
    seconds = row.get("seconds", {})
    return f"{duration(seconds['low'])} to {duration(seconds['high'])}" if seconds.get("low") is not None else None


def _rate(key: str) -> Callable[[Row], str | None]:
    return lambda row: f"{row[key] / row['seconds']['median'] / 1e9:.1f}" if row.get(key) and "seconds" in row else None


def _share(key: str) -> Callable[[Row], str | None]:
    return lambda row: f"{row[key]:.0%}" if row.get(key) is not None else None


def _ratio(key: str) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        from kinema.bench.intervals import Estimate, said

        return said(Estimate(**row[key])) if key in row else None

    return cell


def _number(key: str, form: str) -> Callable[[Row], str | None]:
    return lambda row: format(row[key], form) if row.get(key) is not None else None


def _changed(row: Row) -> str | None:
    changed = row.get("changed")
    return f"{changed['lost']} / {changed['won']} ({changed['p']:.2g})" if changed else None


def _error(row: Row) -> str | None:
    return f"{row['error']['relative']:.1e} (largest {row['error']['largest']:.1e})" if "error" in row else None


def _memory(row: Row) -> str | None:
    return f"{row['peak_bytes'] / 2**30:.2f} GiB" if row.get("peak_bytes") else None


COLUMNS: tuple[Column, ...] = (
    ("", _name),
    ("median", _median),
    ("95 % interval", _interval),
    ("p95", lambda row: duration(row["p95"]) if row.get("p95") else None),
    ("GFLOP/s", _rate("flops")),
    ("of the FMA peak", _share("of_peak")),
    ("GB/s", _rate("bytes")),
    ("of a copy", _share("of_copy")),
    ("against the reference", _ratio("than_reference")),
    ("against torch's own op", _ratio("than_torch")),
    ("kinema is faster", _ratio("kinema_is_faster")),
    ("faster than exact", _ratio("than_exact")),
    ("transformer", _ratio("transformer_than_exact")),
    ("forwards", _share("forwards_share")),
    ("PSNR, dB: mean", _number("psnr", ".1f")),
    ("PSNR, median", _number("psnr_median", ".1f")),
    ("PSNR, 5th percentile", _number("psnr_p5", ".1f")),
    ("30 dB or more", _share("psnr_close")),
    ("PSNR, pooled", _number("psnr_pooled", ".1f")),
    ("SSIM", _number("ssim", ".4f")),
    ("error of the last step", _number("last_step_error", ".1e")),
    ("all three right", _share("adherence")),
    ("lost / won (p)", _changed),
    ("error", _error),
    ("first call", lambda row: duration(row["first_seconds"]) if row.get("first_seconds") else None),
    ("peak memory", _memory),
)
