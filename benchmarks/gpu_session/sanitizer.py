"""Runs compute-sanitizer on small calls of odd sizes of every Triton kernel, and reads its output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinema.bench.gpu_session.little_calls import TINY, little
from kinema.bench.gpu_session.programs import Said, found, run
from kinema.bench.gpu_session.question import Session

PREFIX = "========="
SUMMARY = re.compile(
    r"(ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?(?: displayed \((\d+) errors?, (\d+) warnings?\))?"
)
KERNEL = re.compile(r"\b(?:at|in) (?:0x[0-9a-f]+ in )?([A-Za-z_]\w*)")
SAMPLES = Path(__file__).resolve().parents[2] / "tests" / "bench" / "gpu_session" / "samples"
MOST = 100  # findings that the tool prints
# every tensor gets an allocation of its own, so that an access beyond its end is an error
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Finding:
    """what: the first line of a report; kernel: where, if it says so; details: its other lines."""

    what: str
    kernel: str | None
    details: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """errors, warnings: as the tool counts them; errors is None if it did not finish."""

    errors: int | None
    warnings: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def finished(self) -> bool:
        return self.errors is not None


def parse(text: str) -> Findings:
    """compute-sanitizer's findings in the output of the program."""
    errors, warnings, findings = None, 0, []
    for block in _blocks(text):
        summary = SUMMARY.search(block[0])
        if summary is not None:
            kind, count, wrong, doubtful = summary.groups()
            errors = int(wrong if kind == "RACECHECK" and wrong is not None else count)
            warnings = int(doubtful or 0)
        elif block[0] not in ("COMPUTE-SANITIZER", ""):
            kernel = next((found for line in block if (found := _kernel(line)) is not None), None)
            findings.append(Finding(block[0], kernel, tuple(block[1:])))
    return Findings(errors, warnings, tuple(findings))


def _blocks(text: str) -> Iterator[list[str]]:
    """Its lines, without their prefix, in blocks; a block ends with an empty line, or where another begins."""
    block: list[str] = []
    for line in text.splitlines():
        if not line.startswith(PREFIX):
            continue
        said = line.removeprefix(PREFIX)
        begins = said.strip() and not said.startswith("     ")
        if block and (begins or not said.strip()):
            if begins and said.strip().startswith("and "):  # the other access of a race
                block.append(said.strip())
                continue
            yield block
            block = []
        if said.strip():
            block.append(said.strip())
    if block:
        yield block


def _kernel(line: str) -> str | None:
    named = KERNEL.search(line)
    return named.group(1) if named is not None and named.group(1) not in ("block", "thread", "address") else None


def ask_with(tool: str, limit: float, session: Session) -> None:
    """memcheck, racecheck or synccheck."""
    if session.dry:
        _rehearse(tool, session)
        return
    program = found("compute-sanitizer")
    if program is None:
        session.skip(tool, "needs compute-sanitizer")
        return
    options = ["--tool", tool, "--target-processes", "application-only", "--show-backtrace", "no"]
    options += ["--print-limit", str(MOST), "--kernel-name-exclude", "kernel_substring=at::native"]
    command = [program, *options, sys.executable, "-m", "kinema.bench.gpu_session.watched", "odd"]
    said = run(command, limit, ENVIRONMENT)
    (session.folder / f"{tool}.txt").write_text(said.text, encoding="utf-8")
    _report(tool, session, said)


def _report(tool: str, session: Session, said: Said) -> None:
    results = dict(re.findall(r"^(\w+): (right|wrong.*)$", said.text, re.M))
    found = parse(said.text)
    if not found.finished and not results:
        session.skip(tool, f"it did not run: {' '.join(said.text.split())[-400:] or 'it said nothing'}")
        return
    session.report(
        tool,
        finished=found.finished,
        errors=found.errors,
        warnings=found.warnings,
        kernels_right=[op for op, result in results.items() if result == "right"],
        kernels_wrong=[op for op, result in results.items() if result != "right"],
        findings=_counted(found.findings),
    )


def _counted(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One of each kind of finding, as the threads of a warp repeat it, and how many there are."""
    alike: dict[tuple[str, str | None], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.what, finding.kernel), []).append(finding)
    return [
        {"what": what, "kernel": kernel, "count": len(group), "details": list(group[0].details[:4])}
        for (what, kernel), group in alike.items()
    ]


def _rehearse(tool: str, session: Session) -> None:
    """One call of what would be checked; and the tool's output, from a file."""
    for given in little(session.device, TINY, ("norm_modulate",)):
        session.check(given.op, given.call(), given.truth, plain=given.plain, quantized=given.quantized)
    stored: Sequence[Path] = sorted(SAMPLES.glob(f"{tool}_*.txt"))
    if not stored:
        session.skip(tool, "what the tool says is stored in a checkout alone")
    for path in stored:
        _report(f"{path.stem}", session, Said(0, path.read_text(encoding="utf-8")))
