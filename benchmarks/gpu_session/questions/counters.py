"""What Wan's attention, its output projection and a VAE convolution stall on: ncu's counters of one launch of each."""

from __future__ import annotations

import sys

from kinema.bench.gpu_session.ncu import as_fields, parse
from kinema.bench.gpu_session.programs import found, run
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.gpu_session.sanitizer import SAMPLES
from kinema.bench.gpu_session.watched import LARGE

SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats",
    "LaunchStats", "Occupancy",
)  # fmt: skip
LIMIT = 57.0


def ask(session: Session) -> None:
    if session.dry:
        stored = sorted(SAMPLES.glob("ncu_*.txt"))
        if not stored:
            session.skip("counters", "what ncu says is stored in a checkout alone")
        for path in stored:
            _report(session, f"{path.stem}, ", path.read_text(encoding="utf-8"))
        return
    program = found("ncu")
    if program is None:
        session.skip("counters", "needs ncu")
        return
    kernels = "|".join(f"{op}_kernel" for op in LARGE)
    options = ["--clock-control", "none", "--target-processes", "application-only", "--csv", "--page", "details"]
    options += ["--print-details", "all"]
    options += ["-k", f"regex:^({kernels})$", "-c", str(len(LARGE))]
    for section in SECTIONS:
        options += ["--section", section]
    said = run([program, *options, sys.executable, "-m", "kinema.bench.gpu_session.watched", "large"], LIMIT)
    (session.folder / "ncu.csv").write_text(said.text, encoding="utf-8")
    _report(session, "", said.text)


def _report(session: Session, prefix: str, text: str) -> None:
    profile = parse(text)
    if profile.refused is not None:
        session.skip(f"{prefix}counters", profile.refused)
    for number, launch in enumerate(profile.launches):
        session.report(f"{prefix}{launch.kernel}, launch {number}", **as_fields(launch))


QUESTION = Question(
    decides="whether these kernels wait for memory, for tensor cores, for issue slots or for each other",
    serves="attention, linear, conv3d",
    value=6,
    seconds=50,
    needs=("triton",),
    ask=ask,
)
