"""`kinema bench replay`, small: that every row is there, and that what goes wrong with recordings is said."""

import json

import pytest
import torch

from kinema.bench import replay, replay_mix
from kinema.bench.replay import device_calls, waiting
from kinema.cli.main import main
from kinema.denoise.replay import Recordings
from kinema.ops.common import native

if not native.instruction_sets():
    pytest.skip("the native kernels are not built", allow_module_level=True)


@pytest.fixture
def words(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "TURN", 2)
    monkeypatch.setattr(replay_mix, "GROWTH", 1.0)  # the process of the tests is not ours
    path = tmp_path / "report.json"
    return ["bench", "replay", "-m", str(tiny), "--device", "cpu", "--rounds", "1", "--json", str(path)], path


def small(monkeypatch):
    """Clips of a few tokens instead of the model's own."""
    steps = replay.Steps.__init__
    clip = {"num_frames": 5, "height": 32, "width": 32}
    monkeypatch.setattr(replay.Steps, "__init__", lambda *given, **other: steps(*given, **{**clip, **other}))


def test_the_verb_says_what_it_measured(words, monkeypatch, capsys):
    small(monkeypatch)
    line, path = words
    assert main([*line, "--requests", "8", "--shapes", "3"]) == 0
    report, said = json.loads(path.read_text(encoding="utf-8")), capsys.readouterr().out
    names = {row["name"]: row["samples"] for row in report["rows"]}
    assert {"step", "step, eager", "smallest step", "step, no kernels", "four together"} <= set(names)
    assert all(len(samples) == 1 and samples[0] > 0 for samples in names.values())
    assert report["mix"]["recordings"] == 3 and report["mix"]["wrong"] == []
    assert report["calls"]["aten::copy_"] == 4 and waiting(report["calls"]) == []
    assert "8 requests of 3 shapes: 3 recordings" in said and "waiting: none" in said


def test_recordings_that_do_not_last_are_an_error(words, monkeypatch, capsys):
    small(monkeypatch)
    line, path = words
    monkeypatch.setattr("kinema.denoise.replay.MAX_RECORDINGS", 3)
    room = Recordings._make_room

    def forgets(self, known):
        """The bound is two, whatever it says."""
        monkeypatch.setattr("kinema.denoise.replay.MAX_RECORDINGS", 2)
        room(self, known)
        monkeypatch.setattr("kinema.denoise.replay.MAX_RECORDINGS", 3)

    monkeypatch.setattr(Recordings, "_make_room", forgets)
    assert main([*line, "--requests", "12", "--shapes", "3"]) == 1
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["mix"]["recordings"] > 3 and "WRONG" in capsys.readouterr().out


def test_other_bytes_are_an_error(words, monkeypatch, capsys):
    small(monkeypatch)
    line, _ = words
    kept = Recordings.__call__

    def stale(self, denoiser, parts):
        found = kept(self, denoiser, parts)
        return None if found is None else found + 1e-3

    monkeypatch.setattr(Recordings, "__call__", stale)
    assert main([*line, "--requests", "3", "--shapes", "1"]) == 1
    assert "is not a fresh pipeline's" in capsys.readouterr().out


def test_an_operator_that_waits_is_found():
    x = torch.ones(3, dtype=torch.float32)
    calls = device_calls(lambda: (x + 1).sum().item())
    assert calls["aten::add"] == 1 and waiting(calls) == ["aten::_local_scalar_dense"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounds", "0"], "--rounds 0: wanted at least 1"),
        (["--shapes", "100"], "--shapes 100: this model has"),
        (["--no-replay"], "forwards are not recorded with these options"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, monkeypatch, capsys, more, message):
    small(monkeypatch)
    assert main([*words[0], *more]) != 0
    assert message in capsys.readouterr().err
