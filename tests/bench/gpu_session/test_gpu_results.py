"""The file of a session: what its lines may hold, and that a rehearsal's lines do."""

import json

import pytest

from kinema.bench.gpu_session.results import answered, append, asked, mend, read, wrong_fields, wrong_line
from kinema.errors import RequestError

RUN = {
    "kind": "run", "schema": 1, "time": "2000-01-01T00:00:00+00:00", "command": "kinema bench gpu-session",
    "kinema": "0", "commit": None, "dirty": False, "dry": False, "chip": "made up", "capability": "9.0",
    "driver": "1.2", "clocks": {}, "machine": {}, "libraries": {},
}  # fmt: skip
RESULT = {"kind": "result", "question": "q", "case": "c", "at": 1.5, "fields": {"seconds": [1e-3]}, "clocks": {}}
END = {"kind": "end", "question": "q", "decides": "this", "status": "done", "reason": None, "seconds": 2.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gpu.jsonl"


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_are_read_as_they_were_written(path):
    for line in (RUN, RESULT, END):
        append(path, line)
    assert read(path) == [RUN, RESULT, END]
    assert asked(read(path)) == answered(read(path)) == {"q"}


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        (RUN, {"schema": 2}, "its schema is 2, wanted 1"),
        (RUN, {"commit": 5}, "the commit of a run is 5"),
        (RUN, {"clocks": None}, "the clocks of a run is None"),
        (RUN, {"more": 1}, "a run has more 1"),
        (RUN, {"kind": "walk"}, "its kind is 'walk', wanted one of run, result, end"),
        (RESULT, {"fields": {"seconds": [1.0, 0.0]}}, "wanted positive numbers of seconds"),
        (RESULT, {"fields": {"compiler_seconds": []}}, "wanted positive numbers of seconds"),
        (RESULT, {"skipped": "not here"}, "wanted what was found, or one reason why there is nothing"),
        (RESULT, {"fields": {}, "skipped": "a", "refused": "b"}, "one reason"),
        (END, {"status": "asleep", "reason": "x"}, "q ended as 'asleep'"),
        (END, {"reason": "but"}, "q ended as 'done' because of 'but'"),
        (END, {"status": "crash"}, "q ended as 'crash' because of None"),
    ],
)
def test_what_is_no_line_is_said(line, changes, said, path):
    assert wrong_line(line) is None
    assert said in wrong_line({**line, **changes})
    with pytest.raises(ValueError, match="not a line of a session"):
        append(path, {**line, **changes})
    assert not path.exists()


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": float("nan")}, {1: 2}, b"x", object(), (1, 2)])
def test_what_json_cannot_hold_is_refused(value):
    assert "wanted numbers that are finite" in wrong_fields({"x": value})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "it holds no run"),
        ([RESULT, END], "line 1: a result before the first run"),
        ([RUN, RESULT, RESULT], "line 3: 'c' of q twice in a run"),
        ([RUN, {}], "line 2: its kind is None"),
        ([RUN, 7], "line 2: its kind is None"),
    ],
)
def test_a_file_of_something_else_is_refused(lines, said, path):
    with pytest.raises(RequestError, match=said):
        read(written(path, *lines))


def test_a_case_may_be_asked_again_by_another_run(path):
    assert len(read(written(path, RUN, RESULT, RUN, RESULT))) == 4


def test_a_line_that_was_cut_short_is_dropped_and_the_next_is_whole(path):
    written(path, RUN, RESULT)
    whole = path.read_text()
    path.write_text(whole + json.dumps(END)[:20])
    assert read(path) == [RUN, RESULT]
    mend(path, anew=False)
    assert path.read_text() == whole
    append(path, END)
    assert read(path) == [RUN, RESULT, END]
    mend(path, anew=True)
    assert not path.exists()


def test_a_rehearsal_and_a_gpu_never_share_a_file(session):
    """Neither loses what the other found."""
    from kinema.cli.main import main

    written(session.path, RUN, RESULT, END)
    before = session.path.read_text()
    assert main(["bench", "gpu-session", "--dry-run", "--json", str(session.path), "--only", "build_kernels"]) == 1
    assert session.path.read_text() == before
