"""The prompts that tune a policy and those that judge it."""

import pytest

from kinema.bench.prompt_sets import asked, asked_in, purpose_of
from kinema.errors import RequestError
from kinema.sample.captions import parse_caption


def test_no_scene_and_no_seed_is_in_both_sets():
    tune, judge = asked("tune", 100), asked("judge", 100)
    assert not {a.wanted for a in tune} & {a.wanted for a in judge}
    assert not {a.prompt.lower().strip(".") for a in tune} & {a.prompt.lower().strip(".") for a in judge}
    seeds = [a.seed for a in tune + judge]
    assert len(set(seeds)) == len(seeds) == 200
    assert {purpose_of(a.wanted) for a in tune} == {"tune"}


def test_more_of_a_set_begins_with_fewer_and_any_part_is_the_same():
    assert asked("judge", 40)[:12] == asked("judge", 12) and asked("judge", 12, 5) == asked("judge", 17)[5:]


def test_a_detector_is_told_what_the_prompt_says():
    for one in asked("judge", 60):
        assert parse_caption(one.prompt) == one.wanted


def test_the_sets_stay_what_they_are():
    """Figures in the documents are of these."""
    assert [(a.seed, a.prompt) for a in asked("judge", 2)] == JUDGE
    assert [(a.seed, a.prompt) for a in asked("tune", 2)] == TUNE


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog  \na cow\n", encoding="utf-8")
    assert [(a.prompt, a.seed, a.wanted) for a in asked_in(str(file), 2)] == [("a cat", 0, None), ("a dog", 1, None)]
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(RequestError, match=r"one prompt a line|wanted one a line"):
            asked_in(str(tmp_path / name), 2)


def test_another_set_is_refused():
    with pytest.raises(RequestError, match="wanted one of tune, judge"):
        asked("train", 2)


JUDGE = [
    (1, "a handwritten 2 in green sliding leftwards quickly."),
    (2, "a white square standing still on a blue background."),
]
TUNE = [
    (0, "the orange ring that is gliding leftwards quickly on a purple background"),
    (5, "A white digit three that stays still on a blue background."),
]
