"""bench compare of git revisions, in a little repository whose benchmark writes what its commit says."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from kinema.bench import revisions
from kinema.bench.report import provenance, timing
from kinema.cli.main import main
from kinema.errors import RequestError
from kinema.ops import plan_ops, target_for

# a kinema that has measured before it is asked; it logs who ran, from where and with which words
PROGRAM = """
import json, pathlib, sys
here = pathlib.Path(__file__).resolve().parent
report = json.loads((here / "report.json").read_text())
if "fails" in report:
    sys.exit(report["fails"])
words = sys.argv[1:]
at = words.index("--json")
pathlib.Path(words[at + 1]).write_text(json.dumps(report))
with open({log!r}, "a") as log:
    print(report["kinema"], here.parent, " ".join(words[:at]), file=log)
"""


def git(root, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    root, log = tmp_path / "checkout", tmp_path / "log"
    (root / "engine" / "ops").mkdir(parents=True)
    (root / "kernels").mkdir()
    (root / "engine" / "__init__.py").touch()
    (root / "engine" / "__main__.py").write_text(PROGRAM.format(log=str(log)))
    git(tmp_path, "init", "-q", root)
    plan = plan_ops(target_for("cpu"), "reference")
    head = provenance("ops", ["bench", "ops", "--rounds", "9", "--json", "x.json"], plan, timed="a call")
    for name, seconds in (("fast", 1.0), ("slow", 1.3), ("broken", None)):
        rows = [timing("one", [seconds + 0.001 * i for i in range(8)])] if seconds else []
        report = {**head, "kinema": name, "commit": None, "dirty": False, "rows": rows}
        report |= {} if seconds else {"fails": "no such thing"}
        (root / "engine" / "report.json").write_text(json.dumps(report))
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", name)
        git(root, "tag", name)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(revisions, "checkout", lambda: root)
    return root, log, scratch


def left(root, scratch):
    """Checkouts that git still knows, and files that lie around."""
    return [*git(root, "worktree", "list").splitlines()[1:], *os.listdir(scratch)]


def test_a_slower_revision_is_named(repository, capsys):
    root, log, scratch = repository
    assert main(["bench", "compare", "fast", "slow", "--bench", "ops --case 'a b'"]) == 1
    assert "SLOWER   one" in capsys.readouterr().out
    assert main(["bench", "compare", "slow", "fast"]) == 0
    ran = [line.split(" ", 2) for line in log.read_text().splitlines()]
    assert [who for who, *_ in ran] == ["fast", "slow", "slow", "fast", "slow", "fast", "fast", "slow"], "by turns"
    assert {words for *_, words in ran} == {"bench ops --case a b", "bench ops"}
    assert all(Path(where).is_relative_to(scratch) for _, where, _ in ran)
    assert left(root, scratch) == []


def test_a_file_and_a_revision_run_the_same_command(repository, tmp_path):
    root, log, _ = repository
    file = tmp_path / "base.json"
    file.write_text(git(root, "show", "fast:engine/report.json"))
    assert main(["bench", "compare", str(file), "slow", "--turns", "1"]) == 1
    assert log.read_text().endswith(" bench ops --rounds 9\n") and len(log.read_text().splitlines()) == 1


def test_a_revision_that_cannot_run_says_why_and_leaves_nothing(repository, capsys):
    root, _, scratch = repository
    assert main(["bench", "compare", "fast", "broken"]) == 1
    assert "no such thing" in capsys.readouterr().err
    assert left(root, scratch) == []


def test_what_is_neither_file_nor_revision_is_refused(repository, capsys):
    assert main(["bench", "compare", "fast", "nonsense"]) == 1
    assert "nonsense is neither a result file nor a revision" in capsys.readouterr().err
    assert main(["bench", "compare", "fast", "gone.json"]) == 1
    assert "cannot read gone.json" in capsys.readouterr().err


def test_turns_are_put_together():
    def report(*rows):
        return {"rows": list(rows)}

    one, two = timing("a", [1.0] * 3), timing("a", [2.0] * 3)
    assert revisions.merged([report(one), report(two)])["rows"] == [timing("a", [1.0] * 3 + [2.0] * 3)]
    failed = {"name": "a", "failed": "later"}
    assert revisions.merged([report(one), report(failed)])["rows"] == [failed]
    assert revisions.merged([report(one), report()])["rows"] == [{"name": "a", "failed": "not in every turn"}]


@pytest.mark.slow
def test_a_revision_of_kinema_itself(monkeypatch, capsys):
    """HEAD beside itself: it is checked out, imported and measured there, and what it finds has names."""
    try:
        revisions.checkout()
    except RequestError as error:
        pytest.skip(str(error))  # the sources are no git checkout
    monkeypatch.setenv("KINEMA_NATIVE", "off")
    run = "ops --op unpatchify --rounds 5 --threads 1 --backend reference"
    code = main(["bench", "compare", "HEAD", "HEAD", "--bench", run, "--turns", "1", "--json", "--tolerance", "9"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["rows"] and not found["slower"] and not found["faster"]
