"""`kinema bench start`, of one process of each kind: every stage has its row, and a process that fails is an error."""

import json
import sys

import pytest

from kinema.bench.start import EXIT, GENERATE, START, TORCH, stages
from kinema.cli.main import main
from kinema.errors import KinemaError


def test_the_verb_says_where_the_time_goes(tmp_path, capsys, monkeypatch):
    code = """
import json, sys, time
time.sleep(0.02)
print(json.dumps({"seconds": {"start": 0.01, "denoise": 0.5}, "wall_seconds": 0.015}), flush=True)
time.sleep(0.05)
"""
    found = stages([sys.executable, "-c", code])
    assert set(found) == {"before its work", "denoise", EXIT}
    assert found["denoise"] == 0.5 and found[EXIT] > 0.04 and found["before its work"] > 0.01
    monkeypatch.setattr(
        "kinema.bench.start.stages", lambda command: {"before its work": 3.0, "denoise": 0.5, EXIT: 0.01}
    )
    monkeypatch.setattr("kinema.bench.start.IMPORT", "pass")
    path = tmp_path / "report.json"
    assert main(["bench", "start", "--rounds", "1", "--device", "cpu", "--json", str(path)]) == 0
    rows = {row["name"]: row["samples"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == [TORCH, GENERATE, START, "denoise", EXIT]
    assert rows[EXIT] == [0.01] and 0 < rows[START][0] < 3.0
    said = capsys.readouterr().out
    assert "wanted at most 0.25 s" in said and "wanted at most 0.05 s" in said


def test_a_process_that_fails_is_an_error():
    with pytest.raises(KinemaError, match="ended with code 3: no such thing"):
        stages([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["bench", "start", "--rounds", "0"]) != 0
    assert "--rounds 0: wanted at least 1" in capsys.readouterr().err
