"""A run of the session with questions that are planted."""

import sys
from pathlib import Path

import pytest

from kinema.bench.gpu_session.results import read
from kinema.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))  # for planted.py


@pytest.fixture
def session(monkeypatch, tmp_path):
    """Run a rehearsal of given questions; gives its lines. They are appended to the file that is there."""
    path = tmp_path / "dry.jsonl"

    def run(questions, *words):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr("kinema.bench.gpu_session.choice.known", lambda: questions)
        before = len(path.read_text().splitlines()) if path.exists() and "--missing" in words else 0
        assert main(["bench", "gpu-session", "--dry-run", "--json", str(path), *words]) == 0
        return read(path)[before:]

    run.path = path
    return run
