"""The detectors: right on what the renderer draws, soft and noisy or not, and hard to please otherwise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinema.errors import RequestError
from kinema.sample.adherence import Verdict, judge, observe, wilson_interval
from kinema.sample.render import render, to_frames
from kinema.sample.templates import blurred, templates
from kinema.sample.world import COLOURS, DIGITS, MOTIONS, SUBJECTS, Scene, Subject, sample_scene

ATTRIBUTES = ("subject_ok", "colour_ok", "motion_ok", "speed_ok", "background_ok")


def clips(scenes: list[Scene], num_frames: int = 17, size: int | tuple[int, int] = 64) -> np.ndarray:
    return np.concatenate(
        [to_frames(render(scenes[i : i + 64], num_frames, size)).numpy() for i in range(0, len(scenes), 64)]
    )


@pytest.fixture(scope="module")
def world() -> tuple[list[Scene], np.ndarray]:
    drawn = torch.Generator().manual_seed(21)
    scenes = [sample_scene(drawn, split) for split in ("train", "held_out") for _ in range(288)]
    return scenes, clips(scenes)


def spoilt(frames: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """Blurred (pixels) and noisy (grey levels), as a VAE might leave them."""
    soft = np.moveaxis(blurred(np.moveaxis(frames.astype(np.float32), -1, 0), sigma), 0, -1)
    grain = np.random.default_rng(0).normal(0, noise, frames.shape).astype(np.float32)
    return np.clip(soft + grain, 0, 255).round().astype(np.uint8)


def accuracy(verdicts: list[Verdict]) -> dict[str, float]:
    found = {}
    for name in ATTRIBUTES:
        asked = [ok for v in verdicts if (ok := getattr(v, name)) is not None]
        assert len(asked) > len(verdicts) / 2
        found[name] = sum(asked) / len(asked)
    return found


def test_rendered_clips_are_read_right(world: tuple[list[Scene], np.ndarray]) -> None:
    scenes, frames = world
    assert {s.subjects[0].name for s in scenes} == set(SUBJECTS)
    verdicts = [judge(f, s.describe()) for f, s in zip(frames, scenes, strict=True)]
    for name, share in accuracy(verdicts).items():
        assert share >= 0.99, (name, share, [v for v in verdicts if getattr(v, name) is False][:3])
    assert sum(v.all_ok for v in verdicts) >= 0.99 * len(verdicts)


@pytest.mark.parametrize(("sigma", "noise"), [(0.8, 4.0), (1.2, 8.0)])
def test_soft_and_noisy_clips_are_read(world: tuple[list[Scene], np.ndarray], sigma: float, noise: float) -> None:
    scenes, frames = world
    verdicts = [judge(spoilt(f, sigma, noise), s.describe()) for f, s in zip(frames[::2], scenes[::2], strict=True)]
    for name, share in accuracy(verdicts).items():
        assert share >= 0.97, (name, share)


def test_digits_are_told_apart_without_their_own_template() -> None:
    """Leave-one-out: what a generator draws is none of the images, so this is the detector's real task."""
    poses, names = templates()
    labels = np.array(names)
    images = np.arange(len(names)) % (len(names) // 2)  # every template comes sharp and blurred
    likeness = poses @ poses.T
    likeness[images[:, None] == images[None]] = -1
    nearest = np.argsort(-likeness, axis=1)[:, :5]
    right = [
        Counter(labels[row]).most_common(1)[0][0] == label
        for row, label in zip(nearest, names, strict=True)
        if label in DIGITS
    ]
    assert len(right) == 1000 and np.mean(right) >= 0.99


def test_a_wrong_prompt_is_rejected(world: tuple[list[Scene], np.ndarray]) -> None:
    scenes, frames = world
    for frame, scene in zip(frames[:120], scenes[:120], strict=True):
        said = scene.describe()
        i = SUBJECTS.index(str(said.subject))
        c, m = list(COLOURS).index(str(said.colour)), list(MOTIONS).index(str(said.motion))
        wrong = judge(
            frame,
            replace(
                said,
                subject=SUBJECTS[(i + 5) % 18],
                colour=list(COLOURS)[(c + 1) % 8],
                motion=list(MOTIONS)[(m + 1) % 5],
                background="brown" if said.background != "brown" else "grey",
                speed="fast" if said.speed != "fast" else "slow",
            ),
        )
        assert not any(getattr(wrong, name) for name in ATTRIBUTES)
        for name in ("subject", "colour", "motion"):  # each of them alone spoils the whole
            one = replace(said, **{name: getattr(wrong.wanted, name)})
            assert not judge(frame, one).all_ok


def test_single_frames_have_no_motion(world: tuple[list[Scene], np.ndarray]) -> None:
    scenes, frames = world
    for frame, scene in zip(frames[:60], scenes[:60], strict=True):
        verdict = judge(frame[:1], scene.describe())
        assert verdict.subject_ok and verdict.colour_ok and verdict.background_ok
        assert verdict.motion_ok is None and verdict.speed_ok is None and verdict.all_ok


@pytest.mark.parametrize(("num_frames", "size"), [(5, 64), (81, 64), (17, (48, 80)), (17, 128)])
def test_other_lengths_and_sizes(num_frames: int, size: int | tuple[int, int]) -> None:
    drawn = torch.Generator().manual_seed(5)
    scenes = [sample_scene(drawn, "all") for _ in range(24)]
    verdicts = [judge(f, s.describe()) for f, s in zip(clips(scenes, num_frames, size), scenes, strict=True)]
    assert all(v.all_ok and v.speed_ok is not False for v in verdicts)


def still(name: str = "star", colour: str = "red", x: float = 0.5) -> Scene:
    return Scene((Subject(name, colour, "still", None, x, 0.5),))


def test_empty_frames_and_noise_show_nothing() -> None:
    said = still().describe()
    blank = np.zeros((17, 64, 64, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, blank.shape, dtype=np.uint8)
    for frames in (blank, blank + 200, noise):
        verdict = judge(frames, said)
        assert not verdict.observation.present
        assert not (verdict.subject_ok or verdict.motion_ok or verdict.all_ok)


def test_two_subjects_are_none_of_the_world() -> None:
    small = [Subject("circle", "red", "still", None, x, 0.5, radius=0.1) for x in (0.3, 0.7)]
    seen = observe(clips([Scene(tuple(small))])[0])
    assert seen.present and seen.seen.subject is None and seen.seen.colour == "red"


def test_a_subject_that_fades_changes_or_turns_is_not_what_was_asked() -> None:
    star, heart = clips([still("star"), still("heart")])
    said = still().describe()
    assert judge(star, said).all_ok
    gone = star.copy()
    gone[12:] = 0
    assert not judge(gone, said).observation.present
    changed = np.concatenate([star[:10], heart[10:]])  # a star in three of the five frames read
    assert judge(changed, said).subject_ok is False
    blue = clips([still(colour="blue")])[0]
    assert judge(np.concatenate([star[:10], blue[10:]]), said).colour_ok is False

    moving = Subject("star", "red", "left", "slow", 0.5, 0.5)
    left = clips([Scene((moving,))])[0]
    wanted = Scene((moving,)).describe()
    assert judge(left, wanted).motion_ok
    there_and_back = np.concatenate([left[:9], left[7::-1]])
    stops = np.concatenate([left[:5], np.repeat(left[4:5], 12, axis=0)])
    trembles = left[[0, 1] * 8]
    for frames in (there_and_back, stops, trembles, left[::-1]):
        assert judge(frames, wanted).motion_ok is False
        assert judge(frames, said).motion_ok is False


def test_velocity_is_measured_to_a_fraction_of_a_pixel() -> None:
    scene = Scene((Subject("heart", "pink", "down", "fast", 0.31, 0.77),), "green")
    seen = observe(clips([scene])[0])
    assert seen.velocity == pytest.approx((0.0, 4 / 64), abs=0.05 / 64)
    assert seen.area_variation < 0.02 and seen.subject_share == 1.0


def test_frames_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(RequestError, match="uint8 frames"):
        observe(np.zeros((5, 64, 64, 3), np.float32))
    with pytest.raises(RequestError, match="T of 1 or more"):
        observe(np.zeros((0, 64, 64, 3), np.uint8))


def test_wilson_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    wide, narrow = wilson_interval(90, 100, 0.99), wilson_interval(90, 100, 0.9)
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1]
    with pytest.raises(RequestError, match="1 trial or more"):
        wilson_interval(0, 0)
