"""What is asked, in which order, and what is left for another run."""

import re

import pytest
from planted import ends, question, results

from kinema.bench.gpu_session.choice import chosen, known, lacks, ordered
from kinema.bench.gpu_session.question import MAX_LIMIT, Question
from kinema.cli.main import main
from kinema.errors import RequestError


def finds(session):
    session.report("it", seconds=[1e-3])


@pytest.fixture
def four():
    return {
        "dear": question(finds, value=9, seconds=30),
        "cheap": question(finds, value=5, seconds=2),
        "first": question(finds, value=1, seconds=3, first=True),
        "broken": "ImportError: no module",
    }


def test_what_all_build_on_comes_first_then_value_for_a_second(four):
    assert ordered(four) == ["first", "cheap", "dear", "broken"]


def test_the_budget_takes_the_most_valuable_and_leaves_the_rest(four, session, capsys):
    lines = session(four, "--budget", "20")
    assert list(ends(lines)) == ["first", "cheap", "broken"]
    assert "left for another run, which --missing asks: dear" in capsys.readouterr().out


def test_missing_asks_what_has_no_answer_and_what_all_build_on(four, session):
    """Also what failed: another driver or library may have mended it."""
    session(four, "--budget", "20")
    lines = session(four, "--missing")
    assert list(ends(lines)) == ["first", "dear", "broken"]
    assert lines[0]["kind"] == "run", "another run, in the same file"
    assert list(ends(session(four, "--missing"))) == ["first", "broken"]
    assert list(ends(session(four, "--missing", "--only", "cheap", "first"))) == []


def test_only_asks_these_even_if_they_are_answered(four, session):
    session(four)
    assert list(ends(session(four, "--only", "dear", "cheap"))) == ["cheap", "dear"]
    assert chosen(four, ["dear", "first"], True, {"first"}) == ["dear"]


def test_a_question_that_there_is_not(four, session, capsys):
    with pytest.raises(RequestError, match="no question near: there are first, cheap, dear, broken"):
        chosen(four, ["near"], False, [])


def test_what_it_needs_is_its_reason(session):
    absent = ("no_such_module_kinema", "no-such-program-kinema")
    assert lacks(("torch", "sh")) is None
    assert lacks(absent[:1]) == "no_such_module_kinema is not installed"
    lines = session({"needy": question(finds, needs=("torch", *absent)), "sound": question(finds)})
    end = ends(lines)["needy"]
    assert end["status"] == "skipped"
    assert end["reason"] == "no_such_module_kinema and no-such-program-kinema are not installed"
    assert results(lines, "needy") == {} and results(lines, "sound")


def test_the_list_says_what_is_decided_how_long_it_takes_and_whom_it_serves(four, monkeypatch, capsys):
    monkeypatch.setattr("kinema.bench.gpu_session.choice.known", lambda: four)
    assert main(["bench", "gpu-session", "--list"]) == 0
    said = capsys.readouterr().out
    assert "dear: value 9, about 30 s, limit 60 s, serves tests\n    nothing\n" in said
    assert "broken: cannot be imported: ImportError: no module" in said


@pytest.mark.parametrize("given", [{"seconds": 0}, {"limit": 61}, {"seconds": 20, "limit": 10}])
def test_no_question_may_take_more_than_a_minute(given):
    with pytest.raises(ValueError, match=r"wanted more than 0, at most 60"):
        question(**given)


def test_every_file_is_a_question_that_says_what_it_is_for():
    for name, found in known().items():
        assert isinstance(found, Question), f"{name}: {found}"
        assert found.limit <= MAX_LIMIT and 1 <= found.value <= 10
        assert len(found.decides) > 20 and found.serves and not found.decides.endswith(".")
        assert not re.search(r"\d ?(µs|ms|s|TFLOP|GB|%)\b", found.decides), f"{name}: a figure that no file has"
