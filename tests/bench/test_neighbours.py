"""`kinema bench neighbours`, small: that its neighbours are busy, and end, and what it says of their cost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kinema.bench import neighbours
from kinema.bench.neighbours import CORES, KINEMA, LOOP, PEER, busy, exceeds, measure
from kinema.cli.main import main

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")


class Peer:
    settings, needs, devices = "none", (), ("cpu",)

    def __init__(self):
        self.calls = []

    def generation(self, folder, request, device, dtype):
        return lambda: self.calls.append(request)


@pytest.fixture
def peer(monkeypatch):
    made = Peer()
    monkeypatch.setattr("kinema.bench.peers.peer", lambda name: made)
    return made


@pytest.fixture
def bench(tiny, tmp_path, capsys):
    def run(*words, code=0):
        path = tmp_path / "report.json"
        small = [
            "--tokens",
            "20",
            "--text-tokens",
            "8",
            "--rounds",
            "2",
            "--busy",
            "1",
            "--steps",
            "1",
            "--cores",
            "1",
            "--json",
            str(path),
        ]
        assert main(["bench", "neighbours", "-m", str(tiny), *small, *words]) == code
        said = capsys.readouterr()
        return (json.loads(path.read_text(encoding="utf-8")), said.out) if path.exists() else said.err

    return run


def test_the_verb_says_what_it_measured(bench, peer):
    mask, threads = os.sched_getaffinity(0), torch.get_num_threads()
    report, said = bench()
    names = [f"{name}, {count} busy" for name in (KINEMA, PEER) for count in (0, 1)]
    assert [row["name"] for row in report["rows"]] == names and all(name in said for name in names)
    for row in report["rows"]:
        assert len(row["samples"]) == 2 and row["tail"] >= 1 and row["times_quiet"]["median"] > 0
    assert [row["times_quiet"]["median"] for row in report["rows"] if not row["busy"]] == [1, 1]
    assert (report["cores"], report["steps"], report["threads"]) == (1, 1, 1)
    assert len(peer.calls) == 2 + 2 * 2, "to warm up, and both kinds of a round"
    assert os.sched_getaffinity(0) == mask and torch.get_num_threads() == threads


def test_without_a_peer(bench, peer, monkeypatch):
    monkeypatch.setattr("kinema.bench.peers.missing", lambda *given: "not installed: diffusers")
    report, said = bench()
    assert report["rows"][-1] == {"name": PEER, "failed": "not installed: diffusers"} and "not installed" in said
    report, said = bench("--alone")
    assert {row["name"].partition(",")[0] for row in report["rows"]} == {KINEMA} and "not installed" not in said
    assert not peer.calls


def test_it_fails_beyond_the_limits(bench, peer, monkeypatch):
    """Kinema's own rows alone, and on as many cores as the limits are for."""
    asked = []
    monkeypatch.setattr(neighbours, "exceeds", lambda row: asked.append(row["name"]) or True)
    bench()
    monkeypatch.setattr(neighbours, "CORES", 1)
    bench(code=1)
    assert set(asked) == {"kinema, 0 busy"}


@pytest.mark.parametrize(
    ("count", "times", "tail", "wanted"),
    [
        (0, 1.0, 1.9, False), (0, 1.0, 2.1, True), (1, 2.1, 1.5, False), (1, 2.3, 1.5, True), (1, 2.1, 2.1, True),
        (2, 3.1, 1.5, False), (2, 3.3, 1.5, True), (3, 9.0, 1.5, False),
    ],
)  # fmt: skip
def test_limits(count, times, tail, wanted):
    assert exceeds({"busy": count, "times_quiet": {"median": times}, "tail": tail}) == wanted
    assert not exceeds({"name": PEER, "failed": "not installed"})
    assert CORES == 2


def test_quiet_and_busy_rounds_take_turns(monkeypatch):
    order = []

    class Loops:
        def __init__(self, count):
            self.count = count

        def __enter__(self):
            order.append(f"{self.count}(")

        def __exit__(self, *error):
            order.append(")")

    monkeypatch.setattr(neighbours, "busy", Loops)
    rows = measure({"a": lambda: order.append("a")}, 2, 2, lambda: order.append("|"))
    assert "".join(order) == "aa" + 2 * "0(a)|1(a)|2(a)|"
    assert [(row["name"], row["busy"], len(row["samples"])) for row in rows] == [
        (f"a, {count} busy", count, 2) for count in range(3)
    ]


def loops():
    """{pid: its clock ticks} of children in sessions of their own."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session, *_ = fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if (int(parent), session) == (os.getpid(), path.parent.name) and state != "Z":
            found[int(session)] = int(fields[11])
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_neighbours_are_busy_and_end():
    before = set(loops())
    with pytest.raises(KeyError), busy(2):
        begun = set(loops()) - before
        assert len(begun) == 2, "each in a session of its own"
        end = time.monotonic() + 60
        while not all(loops()[pid] > 2 for pid in begun):
            assert time.monotonic() < end
            time.sleep(0.05)
        raise KeyError
    assert set(loops()) == before
    with busy(0):
        assert set(loops()) == before


def test_a_neighbour_ends_with_a_parent_that_was_killed():
    """Its end of the pipe closes."""
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {LOOP!r}]); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "busy\n"
        parent.kill()
        assert parent.stdout.read() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: wanted at least 1"),
        (["--busy", "0"], "--busy 0: wanted at least 1"),
        (["--steps", "-1"], "--steps -1: wanted at least 1"),
        (["--cores", "100000"], "--cores 100000: there are"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, capsys):
    assert main(["bench", "neighbours", *words]) != 0
    assert message in capsys.readouterr().err
