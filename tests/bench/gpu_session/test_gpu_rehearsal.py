"""The questions' own code on a CPU: the measuring, the checks against float64 and the reporting are those of a GPU."""

import os
import re
import subprocess
import sys

import pytest
from planted import ends

from kinema.bench.gpu_session.choice import known
from kinema.bench.gpu_session.results import read

QUICK = ("ceilings", "self_attention", "linears")
RAISED = re.compile(r"^\w*(Error|Exception|Interrupt)\b")


def rehearse(folder, *words):
    """In a process of its own: Triton is interpreted in it, and it forks before torch has threads."""
    path = folder / "dry.jsonl"
    command = [sys.executable, "-m", "kinema.bench.gpu_session", "--dry-run", "--json", str(path), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=550, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return read(path), done.stdout


def found_of(lines, name):
    return [line for line in lines if line["kind"] == "result" and line["question"] == name]


def is_rehearsed(lines, name):
    """It came to its end, and what it skipped on the way it skipped for a reason, not for a mistake."""
    end = ends(lines)[name]
    if end["status"] == "skipped":
        assert end["reason"].endswith("not installed")
        return
    assert end["status"] == "done", end
    found = found_of(lines, name)
    assert any(line["fields"] for line in found), f"{name} found nothing"
    assert not [line for line in found if RAISED.match(line.get("skipped", ""))]
    assert not [line for line in found if "refused" in line]


def test_three_questions(tmp_path):
    lines, said = rehearse(tmp_path, "--only", *QUICK)
    assert lines[0]["kind"] == "run" and lines[0]["dry"] and set(ends(lines)) == set(QUICK)
    for name in QUICK:
        is_rehearsed(lines, name)
        timed = [line for line in found_of(lines, name) if "seconds" in line["fields"]]
        assert len(timed) >= 2 and all(len(line["fields"]["seconds"]) >= 2 for line in timed), "samples, not a median"
        assert any("error" in line for line in timed), "held against float64"
        assert f"{name}: done" in said
    assert f"{tmp_path / 'dry.jsonl'}: {sum(line['kind'] == 'result' for line in lines)} results" in said


@pytest.mark.slow
def test_all_questions(tmp_path):
    lines, _ = rehearse(tmp_path)
    assert set(ends(lines)) == set(known())
    for name in known():
        is_rehearsed(lines, name)
