"""Runs on a GPU, as far as they can be made without one: what lies in the file goes on, and is never lost."""

import json

import pytest
from planted import ends, question, results

from kinema.bench.gpu_session.results import read
from kinema.bench.gpu_session.session import DrySession
from kinema.cli.main import main

HEAD = {
    "kind": "run", "schema": 1, "time": "2000-01-01T00:00:00+00:00", "command": "x", "kinema": "0", "commit": "ab",
    "dirty": False, "dry": False, "chip": "made up", "capability": "9.0", "driver": "1", "clocks": {}, "machine": {},
    "libraries": {},
}  # fmt: skip


def finds(session):
    session.report("it", seconds=[1e-3])


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Run a session on a GPU of the name only; gives the whole file's lines."""
    path = tmp_path / "gpu.jsonl"
    monkeypatch.chdir(tmp_path)
    for name in ("TRITON_CACHE_DIR", "KINEMA_TRITON_AHEAD"):  # set by a run, and put back behind it
        monkeypatch.setenv(name, "given")
        monkeypatch.delenv(name)
    monkeypatch.setattr("kinema.bench.gpu_session.machine.head", lambda words, commit, *, dry: HEAD)
    monkeypatch.setattr("kinema.bench.gpu_session.runner.GpuSession", DrySession)

    def run(questions, *words, code=0):
        monkeypatch.setattr("kinema.bench.gpu_session.choice.known", lambda: questions)
        assert main(["bench", "gpu-session", "--json", str(path), *words]) == code
        return read(path)

    run.path = path
    return run


def test_a_second_run_goes_on_behind_the_first(gpu):
    questions = {"a": question(finds), "b": question(lambda session: 1 / 0, value=1)}
    first = gpu(questions)
    questions["b"] = question(finds)
    both = gpu(questions, "--missing")
    assert both[: len(first)] == first and [line["kind"] for line in both].count("run") == 2
    assert ends(first)["b"]["status"] == "failed" and ends(both)["b"]["status"] == "done"
    assert [line["question"] for line in both[len(first) :] if line["kind"] == "end"] == ["b"]


def test_nine_minutes_are_what_it_takes(gpu, capsys):
    """Of what is expected: the most valuable for a second, and no more than fits."""
    questions = {str(n): question(finds, value=10 - n / 10, seconds=60) for n in range(12)}
    asked = [line["question"] for line in gpu(questions) if line["kind"] == "end"]
    assert asked[0] == "0" and len(asked) == 12, "these end at once"
    assert "left" not in capsys.readouterr().out
    assert not ends(gpu(questions, "--budget", "30")).keys() - set(asked)
    assert "left for another run, which --missing asks: 0, 1, 2" in capsys.readouterr().out


def test_a_limit_is_cut_to_what_is_left_of_the_budget(gpu):
    def hangs(session):
        while True:
            pass

    lines = gpu({"hanging": question(hangs, seconds=0.1, limit=60)}, "--budget", "3")
    assert ends(lines)["hanging"]["status"] == "limit" and ends(lines)["hanging"]["seconds"] < 30


def test_the_cache_of_triton_is_shared_and_what_was_built_ahead_is_named(gpu, tmp_path):
    def looks(session):
        import os

        session.report("it", cache=os.environ["TRITON_CACHE_DIR"], ahead=os.environ["KINEMA_TRITON_AHEAD"])

    (tmp_path / "ahead").mkdir()
    lines = gpu({"q": question(looks)}, "--triton-cache", "ahead")
    found = results(lines, "q")["it"]["fields"]
    assert found == {"cache": str(tmp_path / "build" / "gpu_session" / "triton"), "ahead": str(tmp_path / "ahead")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--triton-cache", "nowhere"), "--triton-cache nowhere: there is no such folder"),
        (("--budget", "0"), "a budget of 0 s: wanted more than 0"),
        (("--budget", "nan"), "a budget of nan s: wanted more than 0"),
        (("--only", "b"), "no question b: there are a"),
        (("--json", "a/file.txt/gpu.jsonl"), "cannot make"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(gpu, words, said, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.txt").write_text("x")
    with pytest.raises(Exception, match="cannot read"):  # nothing was written
        gpu({"a": question(finds)}, *words, code=1)
    assert said in capsys.readouterr().err


def test_a_gpu_that_torch_cannot_name_is_an_error(gpu, monkeypatch, capsys):
    def broken(words, commit, *, dry):
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr("kinema.bench.gpu_session.machine.head", broken)
    with pytest.raises(Exception, match="cannot read"):
        gpu({"a": question(finds)}, code=1)
    assert "torch cannot say what the GPU is: RuntimeError: CUDA unknown error" in capsys.readouterr().err


def test_results_of_a_rehearsal_take_none_of_a_gpu(gpu, capsys):
    gpu.path.write_text(json.dumps({**HEAD, "dry": True}) + "\n")
    assert len(gpu({"a": question(finds)}, code=1)) == 1
    assert "is of a rehearsal: --json names another file" in capsys.readouterr().err
