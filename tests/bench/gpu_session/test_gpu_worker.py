"""A question that hangs, crashes or fails loses itself, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import pytest
from planted import ends, question, results


def reports(session):
    session.report("before", seconds=[1e-3, 2e-3])


def test_a_hang_and_a_crash_lose_only_their_own_result(session, tmp_path):
    started = tmp_path / "started"

    def hangs(session):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        started.write_text(str(helper.pid))
        session.report("before", seconds=[1e-3])
        while True:
            pass

    def crashes(session):
        session.report("before", seconds=[1e-3])
        os.kill(os.getpid(), signal.SIGSEGV)

    lines = session(
        {
            "hanging": question(hangs, value=9, limit=0.5),
            "crashing": question(crashes, value=8),
            "sound": question(reports, value=7),
        }
    )
    ended = ends(lines)
    assert ended["hanging"]["status"] == "limit" and ended["hanging"]["reason"] == "stopped after 1.5 s"
    assert ended["crashing"]["status"] == "crash" and "SIGSEGV" in ended["crashing"]["reason"]
    assert ended["sound"]["status"] == "done" and ended["sound"]["reason"] is None
    assert all(results(lines, name).keys() == {"before"} for name in ended), "what was found before is kept"
    helper = int(started.read_text())
    until = time.monotonic() + 10
    while alive(helper) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(helper), "a process that the question started still runs"


def alive(process):
    """Not even as a zombie that nobody has waited for: it may be nobody's child here."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("ask", "status", "reason"),
    [
        (lambda session: 1 / 0, "failed", "ZeroDivisionError: division by zero"),
        (lambda session: sys.exit(4), "failed", "SystemExit: 4"),
        (lambda session: os._exit(3), "crash", "the process ended with 3 and said nothing"),
        (lambda session: os.abort(), "crash", "killed by SIGABRT"),
        (lambda session: session.report("a", seconds=[-1.0]), "failed", "wanted positive numbers of seconds"),
        (lambda session: [reports(session), reports(session)], "failed", "'before' is reported twice"),
    ],
)
def test_how_it_ended_is_a_line_with_its_reason(session, ask, status, reason):
    lines = session({"planted": question(ask), "sound": question(reports, value=1)})
    ended = ends(lines)
    assert ended["planted"]["status"] == status and reason in ended["planted"]["reason"]
    assert ended["sound"]["status"] == "done"


def test_what_a_question_prints_is_kept_apart(session, capfd):
    session({"planted": question(lambda session: os.system("echo of a program; echo of an error >&2"))})
    assert "of a" not in capfd.readouterr().out
    said = session.path.with_suffix("") / "planted" / "said.log"
    assert said.read_text() == "of a program\nof an error\n"


def test_a_file_that_cannot_be_imported_is_a_line_too(session):
    lines = session({"broken": "ImportError: no module", "sound": question(reports)})
    assert ends(lines)["broken"]["status"] == "failed" and ends(lines)["broken"]["reason"] == "ImportError: no module"
    assert ends(lines)["sound"]["status"] == "done"
