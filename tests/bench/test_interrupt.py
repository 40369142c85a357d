"""`kinema bench interrupt`, small: that it interrupts, and says how long that took."""

import json
import signal
import time
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from kinema.bench import interrupt
from kinema.bench.interrupt import WAYS, WORKS, interrupted, percentile
from kinema.cli.main import main
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.common import native

if not native.instruction_sets():
    pytest.skip("the native kernels are not built", allow_module_level=True)


@pytest.fixture
def small(monkeypatch):
    """Attention and linear, interrupted at once."""
    works = tuple(replace(work, seconds=0.05) for work in WORKS if work.name in ("attention", "linear"))
    monkeypatch.setattr(interrupt, "WORKS", works)


def test_the_verb_says_what_it_measured(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(interrupt, "LIMIT", 60.0)
    before, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    path = tmp_path / "report.json"
    words = ["bench", "interrupt", "--rounds", "2", "--tokens", "300", "--threads", "2", "--json", str(path)]
    assert main(words) == 0
    report, said = json.loads(path.read_text(encoding="utf-8")), capsys.readouterr().out
    names = [f"{name}, {way}" for name in ("attention", "linear") for way in WAYS]
    assert [row["name"] for row in report["rows"]] == names and all(name in said for name in names)
    for row in report["rows"]:
        assert len(row["samples"]) == 2 and row["p95"] == max(row["samples"]) > 0
    assert report["threads"] == 2 and report["tokens"] == 300
    assert signal.getsignal(signal.SIGINT) is before and torch.get_num_threads() == threads
    monkeypatch.setattr(interrupt, "LIMIT", 0.0)
    assert main([*words, "--case", "linear"]) == 1


@pytest.mark.parametrize("way", WAYS)
def test_what_it_times_ends_where_the_interruption_comes_out(way):
    ops = build_ops(plan_ops(target_for("cpu"), "cpu"))
    multiply, late = WORKS[1].prepare(ops, Namespace(tokens=50)), 0.05

    def call():
        try:
            while True:
                multiply()
        finally:
            time.sleep(late)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert interrupted(call, way, 0.01) >= late
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_users_own_interrupt_ends_the_bench():
    def call():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(call, "a flag", 60.0)


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, 1), (2, 2), (19, 19), (20, 19), (21, 20), (40, 38), (100, 95)], ids=str
)
def test_a_percentile_is_a_sample(count, wanted):
    assert percentile([float(n) for n in range(count, 0, -1)]) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: wanted at least 1"),
        (["--tokens", "-1"], "--tokens -1: wanted at least 1"),
        (["--case", "none"], "nothing has 'none' in its name: attention, linear"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, capsys):
    assert main(["bench", "interrupt", *words]) != 0
    assert message in capsys.readouterr().err
