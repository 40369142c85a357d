"""How long a request will take: what is remembered of runs, what is made of it, and what a bad file does."""

import json
import stat
from dataclasses import replace

import pytest
from PIL import Image

from kinema.estimate import runs
from kinema.estimate.runs import Run, seconds_for
from kinema.request import GenerationRequest

CALL = {"prompt": "a red ball", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 0}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))


def run(work, seconds, stage="denoise", kind="k", model="m"):
    return Run(kind, model, stage, work, seconds)


def never():
    raise AssertionError("the machine's rate is not wanted here")


def test_the_same_work_takes_the_median_of_its_newest_runs():
    assert seconds_for(10, [run(10, 99), run(10, 1), run(10, 3), run(10, 2)], never) == 2


def test_between_two_amounts_it_lies_between_them():
    known = [run(10, 1), run(1000, 16)]
    assert seconds_for(100, known, never) == pytest.approx(4)
    assert 0.5 < seconds_for(5, known, never) < 0.7


def test_beyond_the_most_the_machine_decides_unless_proportion_is_less():
    known = [run(10, 1), run(100, 2)]
    assert seconds_for(1000, known, lambda: 90.0) == 12
    assert seconds_for(1000, known, lambda: 1.0) == 20


def test_the_oldest_of_a_kind_give_way():
    for second in range(1, 20):
        runs.remember([run(10, second), run(10, second, stage="text")])
    kept = [each.seconds for each in runs.read() if each.stage == "text"]
    assert kept == list(range(12, 20))
    assert len(runs.read()) == 2 * runs.KEPT_OF_A_KIND


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "{}", '{"format": 1, "runs": 3}', '{"format": 2, "runs": []}', '{"format": 1, "runs": [{}]}'),
        '{"format": 1, "runs": [{"kind": "k", "model": "m", "stage": "s", "work": "1", "seconds": 1}]}',
        '{"format": 1, "runs": [{"kind": "k", "model": "m", "stage": "s", "work": 1, "seconds": NaN}]}',
        '{"format": 1, "runs": [{"kind": 1, "model": "m", "stage": "s", "work": 1, "seconds": 1}]}',
        '{"format": 1, "runs": [{"kind": "k", "model": "m", "stage": "s", "work": 0, "seconds": 1}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_costs_no_more_than_accuracy(content):
    runs.file().parent.mkdir(parents=True)
    runs.file().write_text(content)
    assert runs.read() == []
    runs.remember([run(1, 1)])
    assert runs.read() == [run(1, 1)]


def test_a_folder_that_takes_no_file_costs_no_more_than_accuracy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "file"))
    runs.remember([run(1, 1)])
    assert runs.read() == []


def test_what_was_written_is_for_its_owner_alone():
    runs.remember([run(1, 1)])
    assert stat.S_IMODE(runs.file().stat().st_mode) & 0o022 == 0
    assert json.loads(runs.file().read_text())["format"] == runs.FORMAT


def finished(pipe, **changed):
    request = pipe.complete(GenerationRequest(**{**CALL, **changed}), streamed=True)
    expected = pipe.expected_time(request)
    state = pipe.prepare(request, streamed=True)
    pipe.run(state)
    return expected, pipe.finish(state).stats


def test_a_run_is_what_the_next_one_goes_by(models):
    pipe = models.fresh("t2v")
    expected, stats = finished(pipe)
    first = expected.estimate()
    assert first.runs == 0 and first.total > 0 and "a first guess" in str(first)
    expected.remember(stats)
    second = expected.estimate()
    assert second.runs == 1 and "by 1 run of this model here" in str(second)
    assert second.seconds["denoise"] == stats.seconds["denoise"]
    twice = pipe.expected_time(pipe.complete(GenerationRequest(**{**CALL, "num_inference_steps": 4})))
    assert twice.work["denoise"] == 2 * expected.work["denoise"]
    other = models.fresh("t2v", precision="bf16").expected_time(pipe.complete(GenerationRequest(**CALL)))
    assert other.estimate().runs == 0


def test_a_run_that_was_ended_is_not_remembered(models):
    pipe = models.fresh("t2v")
    request = pipe.complete(GenerationRequest(**CALL))
    expected, state = pipe.expected_time(request), pipe.prepare(request)
    state.interrupt = True
    expected.remember(state.measured())
    assert runs.read() == []


def test_only_the_steps_that_are_taken_count(models):
    pipe = models.fresh("t2v")
    whole = pipe.expected_time(pipe.complete(GenerationRequest(**CALL)))
    video = {**CALL, "video": [Image.new("RGB", (32, 32))] * 5, "strength": 0.5}
    half = pipe.expected_time(pipe.complete(GenerationRequest(**video)))
    assert half.work["denoise"] == whole.work["denoise"] / 2


def test_a_model_that_does_not_count_is_of_unknown_time(models, monkeypatch):
    pipe = models.fresh("t2v")
    work = type(pipe.model).work

    def uncounted(*given, **options):
        return {stage: replace(each, flops=0) for stage, each in work(*given, **options).items()}

    monkeypatch.setattr(type(pipe.model), "work", uncounted)
    estimate = pipe.expected_time(pipe.complete(GenerationRequest(**CALL))).estimate()
    assert estimate.total is None and "unknown time" in str(estimate)
