"""Two reports with known differences: what is named, and the exit code."""

import json

import numpy as np
import pytest

from kinema.bench.report import provenance, timing, write_report
from kinema.cli.main import main
from kinema.ops import plan_ops, target_for


@pytest.fixture
def written(tmp_path):
    plan = plan_ops(target_for("cpu"), "reference")

    def write(name, rows, **changes):
        report = {**provenance("ops", ["bench", "ops"], plan, timed="a call"), "commit": None, "dirty": False}
        path = tmp_path / name
        write_report(str(path), {**report, "rows": rows, **changes})
        return str(path)

    return write


def row(name, median, seed=0, spread=0.02):
    return timing(name, (median * np.random.default_rng(seed).lognormal(0, spread, 20)).tolist())


def test_a_regression_is_named_and_fails(written, capsys):
    base = written("a.json", [row("one", 1.0), row("two", 1.0, 1), row("three", 1.0, 2)])
    new = written("b.json", [row("one", 1.3, 3), row("two", 0.5, 4), row("three", 1.0, 5)])
    assert main(["bench", "compare", base, new]) == 1
    lines = {words[1]: words[0] for words in (line.split() for line in capsys.readouterr().out.splitlines())}
    assert (lines["one"], lines["two"], lines["three"]) == ("SLOWER", "faster", "same")
    assert main(["bench", "compare", new, base, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["slower"], found["faster"]) == (["two"], ["one"])


def test_noise_is_no_regression(written, capsys):
    base = written("a.json", [row("one", 1.0, 0, spread=0.5)])
    new = written("b.json", [row("one", 1.1, 1, spread=0.5)])
    assert main(["bench", "compare", base, new]) == 0
    out = capsys.readouterr().out
    assert "unclear" in out and "too noisy" in out


def test_the_tolerance_is_what_counts_as_the_same(written):
    base, new = written("a.json", [row("one", 1.0)]), written("b.json", [row("one", 1.3, 1)])
    assert main(["bench", "compare", base, new, "--tolerance", "0.5"]) == 0


def test_a_row_that_stopped_working_fails(written, capsys):
    base = written("a.json", [row("one", 1.0)])
    new = written("b.json", [{"name": "one", "refused": "wrong: errs"}, row("two", 1.0)])
    assert main(["bench", "compare", base, new]) == 1
    out = capsys.readouterr().out
    assert "BROKEN" in out and "wrong: errs" in out and "added: two" in out


def test_a_row_that_vanished_is_named_and_fails(written, capsys):
    base = written("a.json", [row("one", 1.0), row("two", 1.0), {"name": "never timed", "failed": "x"}])
    new = written("b.json", [row("one", 1.0)])
    assert main(["bench", "compare", base, new]) == 1
    out = capsys.readouterr().out
    assert "VANISHED two" in out and "1 vanished" in out and "never timed" not in out
    assert main(["bench", "compare", new, base]) == 0, "a new row is no regression"


def test_the_baseline_of_fewer_steps_may_become_another(written):
    base = written("a.json", [row("exact", 1.0), {**row("exact, 9 steps", 1.0), "kind": "fewer steps"}])
    new = written("b.json", [row("exact", 1.0), {**row("exact, 8 steps", 1.0), "kind": "fewer steps"}])
    assert main(["bench", "compare", base, new]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": "of another model"},
        {"grid": [1, 2, 3]},
        {"text_tokens": 9},
        {"steps": 5},
        {"request": {"height": 8}},
        {"target": {"device": "cpu", "precision": "bf16", "backend": "auto"}},
        {"target": {"device": "cuda", "precision": "fp32", "backend": "auto"}},
        {"target": {"device": "cpu", "precision": "fp32", "backend": "reference"}},
    ],
)
def test_reports_of_different_things_are_refused(written, capsys, changes):
    same = {"configuration": "a", "grid": [1, 1, 1], "text_tokens": 8, "steps": 4, "request": {"height": 4}}
    same |= {"target": {"device": "cpu", "precision": "fp32", "backend": "auto"}}
    base = written("a.json", [row("one", 1.0)], **same)
    assert main(["bench", "compare", base, written("b.json", [row("one", 1.0)], **same)]) == 0
    assert main(["bench", "compare", base, written("c.json", [row("one", 1.0)], **same | changes)]) == 1
    assert "timed different things" in capsys.readouterr().err


def test_what_else_differs_is_said(written, capsys):
    base = written("a.json", [row("one", 1.0)])
    new = written("b.json", [row("one", 1.0)], threads=99, dirty=True, commit="f" * 40)
    assert main(["bench", "compare", base, new]) == 0
    out = capsys.readouterr().out
    assert "then 99" in out and "new has changes" in out and "f" * 40 in out


def test_reports_that_cannot_be_compared_are_refused(written, capsys):
    base = written("a.json", [row("one", 1.0)])
    assert main(["bench", "compare", written("n.json", []), written("b.json", [row("two", 1.0)])]) == 1
    assert "timed nothing that" in capsys.readouterr().err
    assert main(["bench", "compare", base, written("c.json", [], benchmark="model")]) == 1
    assert "wanted two of one verb" in capsys.readouterr().err
