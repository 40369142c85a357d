"""`kinema bench estimate`, of two clips: the first is a guess, the second goes by it, and being off is an exit code."""

import json

from kinema.bench import estimate
from kinema.cli.main import main


def test_the_second_clip_goes_by_the_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "WITHIN", 1.0)  # nothing takes exactly what was foreseen
    path = tmp_path / "report.json"
    assert main(["bench", "estimate", "--model", "sample", "--clips", "2", "--json", str(path)]) == 1
    first, second = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert (first["earlier_runs"], second["earlier_runs"]) == (0, 1)
    assert first["fits"] and not second["fits"] and second["ratio"] == second["foreseen"] / second["taken"]
    out = capsys.readouterr().out
    assert "a guess" in out and "outside" in out and "0 of 1 within" in out
