"""Animated pictures come back as the video that they show: its frames, its rate, its pauses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from kinema.errors import RequestError
from kinema.media.formats import frame_rate
from kinema.media.inputs import load_video
from kinema.media.pixels import read_video
from kinema.media.timing import timing_of
from kinema.media.video import Video

# which frame is shown when: pauses at the beginning, within and at the end, and one frame all the time
PATTERNS = {
    "moving": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "pauses": [0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 4, 5, 6, 6],
    "still": [0] * 17,
    "one": [0],
    "two": [0, 0],
    "long": [0] * 90 + [1],
    "back": [0, 1, 1, 0, 0, 1],
}


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """Nine frames that a GIF can hold without loss."""
    return np.random.default_rng(1).choice([0, 255], (9, 12, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("fps", [0.5, 1, 8, 12.5, 16, 24000 / 1001, 24, 30, 50, 60, 999, 1000])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_what_we_write_comes_back(tmp_path, colours, name, pattern, fps):
    if name == "a.gif" and fps > 50:
        pytest.skip("a GIF is not so fast")
    clip = colours[PATTERNS[pattern]]
    Video(clip, fps).save(tmp_path / name)
    loaded = load_video(tmp_path / name)
    assert loaded.fps == frame_rate(fps)
    assert loaded.frames.shape == clip.shape and np.array_equal(loaded.frames, clip)
    some = load_video(tmp_path / name, max_frames=4)
    assert some.fps == loaded.fps and np.array_equal(some.frames, clip[:4])
    assert read_video(tmp_path / name, 12, 16, num_frames=min(4, len(clip))).num_frames == min(4, len(clip))


@pytest.mark.parametrize("name", ["a.mp4", "a.npy", "a/"])
def test_the_other_formats_have_every_frame_anyway(tmp_path, colours, name):
    clip = colours[PATTERNS["pauses"]].repeat(2, axis=1)
    Video(clip, 12).save(f"{tmp_path}/{name}")
    loaded = load_video(f"{tmp_path}/{name}")
    assert loaded.frames.shape == clip.shape
    assert loaded.fps == (12 if name == "a.mp4" else 16), "neither numpy's files nor a folder hold a rate"


def write(path, frames: np.ndarray, durations, **options) -> None:
    """As another program would: durations in milliseconds, no comment."""
    pictures = [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=list(durations), **options)


# durations in milliseconds, the rate that they have in common, and how many of its frames each is
FOREIGN = {
    "equal": ([100, 100, 100], 10, [1, 1, 1]),
    "one pause": ([100, 200, 100], 10, [1, 2, 1]),
    "no multiple": ([100, 250], 20, [2, 5]),
    "first long": ([300, 100], 10, [3, 1]),
    "two rates": ([200, 200, 100, 100], 10, [2, 2, 1, 1]),
    "one": ([400], 2.5, [1]),
    "fast": ([20, 20, 40], 50, [1, 1, 2]),
}


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_variable_durations_of_others(tmp_path, colours, name, case):
    durations, rate, repeats = FOREIGN[case]
    if case == "one" and name != "a.gif":
        pytest.skip("a still")
    frames = colours[: len(durations)]
    write(tmp_path / name, frames, durations)
    loaded = load_video(tmp_path / name)
    assert loaded.fps == rate
    assert np.array_equal(loaded.frames, frames.repeat(repeats, axis=0))
    assert np.array_equal(load_video(tmp_path / name, max_frames=2).frames, frames.repeat(repeats, axis=0)[:2])


@pytest.mark.parametrize(
    ("durations", "unit", "rate", "repeats"),
    [
        ([60, 60, 70, 60, 60, 70, 60, 60], 10, 16, [1] * 8),  # 16 a second in centiseconds
        ([60, 190, 60, 190], 10, 16, [1, 3, 1, 3]),
        ([33, 34, 33, 67, 33], 1, 30, [1, 1, 1, 2, 1]),
        ([33, 33, 33, 33], 1, 1000 / 33, [1] * 4),  # another program's 30 a second: each is rounded alone
        ([42, 41, 42, 83, 42, 125], 1, 24, [1, 1, 1, 2, 1, 3]),
        ([41, 42, 42, 83, 42, 125], 1, 24, [1, 1, 1, 2, 1, 3]),  # cut, not rounded
        ([30, 30, 40, 60, 40, 30, 100], 10, 30, [1, 1, 1, 2, 1, 1, 3]),
        ([33, 35, 31, 40, 29, 28, 37, 36], 1, 8000 / 269, [1] * 8),  # a screen recording: no rate
        ([10, 655350], 10, 2000 / 655360, [1, 1]),  # too many frames
        ([0, 0, 0], 10, None, []),
        ([0, 100, 100], 10, 10, [1, 1, 1]),
        ([], 1, None, []),
        ([7] * 5000, 1, 1000 / 7, [1] * 5000),
    ],
)
def test_rates_are_found_behind_rounded_times(durations, unit, rate, repeats):
    timing = timing_of([Fraction(duration) for duration in durations], unit)
    assert list(timing.repeats) == repeats
    assert timing.rate is None if rate is None else float(timing.rate) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize(
    "comment",
    [
        "kinema: 9 frames at 16/1 fps",  # of 3
        "kinema: 999999999 frames at 999999999/1 fps",
        "kinema: 0 frames at 16/1 fps",
        "kinema: 3 frames at 0/1 fps",
        "kinema: 3 frames at 16/0 fps",
        "kinema: 3 frames at 16/1",
        "kinema: 3 frames at 10/1 fps",
    ],
)
def test_a_comment_that_does_not_fit_is_not_believed(comment):
    timing = timing_of([Fraction(100)] * 3, 10, comment)
    assert (timing.rate, list(timing.repeats)) == (10, [1, 1, 1])
    assert sum(timing_of([], 1, comment).repeats) <= 10


def test_a_file_that_another_program_made_slower(tmp_path, colours):
    """It keeps our comment, and the comment is no longer so."""
    Video(colours[:4], 20).save(tmp_path / "in.gif")
    with Image.open(tmp_path / "in.gif") as gif:
        gif.save(tmp_path / "out.gif", save_all=True, duration=200, comment=gif.info["comment"])
    loaded = load_video(tmp_path / "out.gif")
    assert loaded.fps == 5 and loaded.num_frames == 4


def test_the_picture_for_programs_that_show_no_animations_is_no_frame(tmp_path, colours):
    pictures = [Image.fromarray(frame) for frame in colours[:4]]
    pictures[0].save(tmp_path / "in.png", save_all=True, append_images=pictures[1:], duration=40, default_image=True)
    loaded = load_video(tmp_path / "in.png")
    assert loaded.fps == 25 and np.array_equal(loaded.frames, colours[1:4])


def test_pages_are_frames_without_times(tmp_path, colours):
    pictures = [Image.fromarray(frame) for frame in colours[:3]]
    pictures[0].save(tmp_path / "in.tiff", save_all=True, append_images=pictures[1:])
    loaded = load_video(tmp_path / "in.tiff")
    assert loaded.fps == 16 and np.array_equal(loaded.frames, colours[:3])


def test_a_rate_that_no_video_has_is_none(tmp_path, colours):
    """655 seconds a frame."""
    write(tmp_path / "in.gif", colours[:2], [655350, 655350])
    assert load_video(tmp_path / "in.gif").fps == 16


def test_a_still_of_the_command_that_says_too_many_frames(tmp_path, monkeypatch):
    """Frames that a comment promises count as frames."""
    Video(np.zeros((50, 4, 4, 3), np.uint8)).save(tmp_path / "in.webp")
    monkeypatch.setattr("kinema.media.pixels.MAX_FRAMES", 49)
    with pytest.raises(RequestError, match="more than 49 frames"):
        read_video(tmp_path / "in.webp", 4, 4)
