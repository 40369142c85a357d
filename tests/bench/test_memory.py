"""`kinema bench memory`, of one case: what it measures, and that it says when a prediction is off."""

import json

from kinema.bench import memory
from kinema.cli.main import main

WORDS = ["bench", "memory", "--case", "sample, 1 x 64x64", "--rounds", "1"]


def test_a_case_is_measured_in_a_process_of_its_own(tmp_path, capsys):
    path = tmp_path / "report.json"
    code = main([*WORDS, "--json", str(path)])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert 150 * 2**20 < row["measured"] < 2**30 and row["stage"] in ("text", "denoise", "decode")
    assert row["ratio"] == row["predicted"] / row["measured"]
    assert code == (not row["fits"]) and row["name"] in capsys.readouterr().out


def test_a_prediction_that_is_off_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(memory, "LEAST", 100.0)
    assert main(WORDS) == 1
    assert "outside" in capsys.readouterr().out


def test_there_are_as_many_cases_as_the_promise_needs():
    names = [case.name for case in memory.cases()]
    assert len(names) == len(set(names)) >= 16
