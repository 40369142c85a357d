"""The bench verbs of the sample model, small: what they print and write."""

import json

import pytest

from kinema.bench import steps
from kinema.cli.main import main
from kinema.sample import distance


def test_adherence_of_continued_clips(capsys, tmp_path):
    report = tmp_path / "report.json"
    command = ["bench", "adherence", "--prompts", "2", "--batch", "2", "--steps", "2", "--frames", "22"]
    assert main([*command, "--threads", "1", "--json", str(report)]) == 0
    assert "all three" in capsys.readouterr().out
    written = json.loads(report.read_text())
    assert written["frames"] == 22 and written["splits"]["held_out"]["all three"]["of"] == 2


def test_steps_are_measured_printed_and_drawn(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(steps, "STEPS", (1, 2))
    monkeypatch.setattr(distance, "WIDTHS", (3, 2, 2))
    monkeypatch.setattr(distance, "FEATURES", 8)
    report, plot = tmp_path / "steps.json", tmp_path / "steps.png"
    command = ["bench", "steps", "--prompts", "9", "--threads", "1", "--json", str(report), "--plot", str(plot)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    points = json.loads(report.read_text())["points"]
    assert [point["steps"] for point in points] == [1, 2]
    assert all(point["of"] == 9 and point["distance"] > 0 for point in points)
    assert plot.stat().st_size > 5000
    assert main(["bench", "steps", "--of", str(report)]) == 0
    assert capsys.readouterr().out == printed


def test_too_few_clips_for_a_distance_are_refused(capsys):
    assert main(["bench", "steps", "--prompts", "20"]) != 0
    assert "wanted more than 64" in capsys.readouterr().err
