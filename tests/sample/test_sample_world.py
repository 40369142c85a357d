"""The little world: what scenes are drawn, the held-out split, and exact rendering."""

import math
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from kinema.errors import RequestError, UnsupportedError
from kinema.sample import digits
from kinema.sample.render import render, to_frames
from kinema.sample.shapes import polygon_distance, shape_field
from kinema.sample.world import (
    BACKGROUNDS,
    COLOURS,
    IMAGES_SHOWN,
    MOTIONS,
    SPEEDS,
    SUBJECTS,
    Scene,
    Subject,
    combinations,
    contrasts,
    is_held_out,
    sample_scene,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(count: int, seed: int = 0, split: str = "all") -> list[Scene]:
    drawn = generator(seed)
    return [sample_scene(drawn, split) for _ in range(count)]


def circle(motion: str = "still", speed: str | None = None, x: float = 0.5, y: float = 0.5) -> Scene:
    return Scene((Subject("circle", "white", motion, speed, x, y),))


def test_a_tenth_is_held_out_and_never_trained() -> None:
    held = combinations("held_out")
    everything = combinations("all")
    assert len(held) * 10 == len(everything) == 720
    assert set(held).isdisjoint(combinations("train"))
    assert set(held) | set(combinations("train")) == set(everything)

    drawn = generator(3)
    seen: Counter[tuple[str, str, str]] = Counter()
    for _ in range(20_000):
        it = sample_scene(drawn, "train").subjects[0]
        assert not is_held_out(it.name, it.colour, it.motion)
        seen[it.name, it.colour, it.motion] += 1
    assert set(seen) == set(combinations("train"))  # all of the rest is seen
    assert max(seen.values()) < 4 * min(seen.values())


def test_every_pair_of_attributes_is_still_trained() -> None:
    train = combinations("train")
    assert {(s, c) for s, c, _ in train} == {(s, c) for s in SUBJECTS for c in COLOURS}
    assert {(s, m) for s, _, m in train} == {(s, m) for s in SUBJECTS for m in MOTIONS}
    assert {(c, m) for _, c, m in train} == {(c, m) for c in COLOURS for m in MOTIONS}


def test_the_held_out_split_is_frozen() -> None:
    """A change of the split would make trained weights and their reports disagree without a sound."""
    assert combinations("held_out", ("circle", "3")) == (
        ("circle", "orange", "up"),
        ("circle", "purple", "up"),
        ("circle", "purple", "down"),
        ("circle", "white", "still"),
        ("3", "yellow", "right"),
        ("3", "yellow", "down"),
        ("3", "blue", "right"),
        ("3", "pink", "left"),
    )


def test_held_out_scenes_are_held_out() -> None:
    for scene in scenes(500, split="held_out"):
        it = scene.subjects[0]
        assert is_held_out(it.name, it.colour, it.motion)


def test_subjects_contrast_and_palettes_are_apart() -> None:
    for scene in scenes(2000):
        assert contrasts(scene.subjects[0].colour, scene.background)
    for palette, least in ((COLOURS, 80), (BACKGROUNDS, 40)):
        names = list(palette)
        for i, a in enumerate(names):
            for b in names[:i]:
                assert math.dist(palette[a], palette[b]) >= least, (a, b)
    assert not contrasts("blue", "blue") and contrasts("blue", "grey")


def test_scenes_use_all_that_the_world_has() -> None:
    drawn = scenes(4000)
    subjects = [scene.subjects[0] for scene in drawn]
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert {it.speed for it in subjects} == {*SPEEDS, None}
    plain = sum(scene.background == "black" for scene in drawn) / len(drawn)
    assert 0.46 < plain < 0.54
    assert len({it.digit_image for it in subjects}) == 10 * IMAGES_SHOWN + 1
    assert {it.x for it in subjects if it.motion == "left"} != {0.5}


def test_scenes_are_determined_by_the_seed() -> None:
    assert scenes(50, seed=7) == scenes(50, seed=7)
    assert scenes(50, seed=7) != scenes(50, seed=8)
    first, second = render(scenes(8, seed=7), 5), render(scenes(8, seed=7), 5)
    assert torch.equal(first, second)


def test_nothing_is_cut_in_two_across_its_path() -> None:
    for scene, video in zip(drawn := scenes(200, seed=4), render(drawn, 1), strict=True):
        it = scene.subjects[0]
        ground = video.new_tensor(BACKGROUNDS[scene.background])[:, None, None] / 127.5 - 1
        occupied = ((video[:, 0] - ground).abs().sum(0) > 0.1).float()
        if it.motion in ("up", "down", "still"):
            assert occupied[:, [0, -1]].sum() == 0
        if it.motion in ("left", "right", "still"):
            assert occupied[[0, -1], :].sum() == 0


@pytest.mark.parametrize("size", [64, (48, 80)])
def test_the_torus_repeats_exactly(size: int | tuple[int, int]) -> None:
    drawn = [s for s in scenes(60, seed=1) if s.subjects[0].speed == "fast"][:6]
    assert {s.period for s in drawn} == {16}
    video = render(drawn, 40, size)
    assert torch.equal(video[:, :, :24], video[:, :, 16:])
    moving = (video[:, :, 0] - video[:, :, 1]).abs().amax((1, 2, 3))
    assert (moving > 0.5).all()


def test_a_long_clip_is_the_same_world_later() -> None:
    drawn = scenes(12, seed=2)
    whole = render(drawn, 33)
    assert torch.equal(render(drawn, 17, first_frame=16), whole[:, :, 16:])
    for i, scene in enumerate(drawn[:4]):  # and does not depend on what else is in the batch
        torch.testing.assert_close(render([scene], 33)[0], whole[i], rtol=0, atol=0)
    far = 64 * 1000
    assert torch.equal(render(drawn, 3, first_frame=far), whole[:, :, :3])


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 2, -1), ("right", 2, 1), ("up", 1, -1), ("down", 1, 1)])
@pytest.mark.parametrize(("speed", "pixels"), [("slow", 2), ("fast", 4)])
def test_motion_is_a_roll_of_the_frame(motion: str, axis: int, sign: int, speed: str, pixels: int) -> None:
    """At 64 pixels a step is whole, so every frame is the first one rolled: an independent check."""
    video = render([circle(motion, speed, 0.371, 0.618)])[0]
    for t in (1, 5, 16):
        rolled = torch.roll(video[:, 0], sign * pixels * t, dims=axis)
        torch.testing.assert_close(video[:, t], rolled, rtol=0, atol=2e-5)


def test_a_circle_has_its_area_colour_and_soft_edge() -> None:
    scene = circle(x=0.43, y=0.57)
    video = render([scene], 1, 64)[0, :, 0]
    radius = 64 * scene.subjects[0].radius
    opacity = (video[0] + 1) / (248 / 127.5)
    assert opacity.sum() == pytest.approx(math.pi * radius**2, rel=0.01)
    assert video[:, 36, 27].tolist() == pytest.approx([248 / 127.5 - 1] * 3, abs=1e-6)
    edge = ((opacity > 0.02) & (opacity < 0.98)).sum()
    assert edge < 2 * math.pi * radius * 1.5  # about one pixel wide
    moved = render([circle(x=0.43 + 0.5 / 64, y=0.57)], 1, 64)[0, 0, 0]
    columns = torch.arange(64.0)
    centre = (opacity.sum(0) * columns).sum() / opacity.sum()
    later = (((moved + 1).sum(0)) * columns).sum() / (moved + 1).sum()
    assert later - centre == pytest.approx(0.5, abs=0.02)  # half a pixel is half a pixel


def test_a_place_is_where_it_says() -> None:
    """The middle of the frame lies between pixels 31 and 32, so a circle there is its own mirror image."""
    mask = render([circle()], 1)[0, 0, 0]
    torch.testing.assert_close(mask, mask.flip(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(mask, mask.T, rtol=0, atol=1e-5)
    wide = render([circle(x=0.25)], 1, (32, 64))[0, 0, 0]
    torch.testing.assert_close(wide[:, :32], wide[:, :32].flip(1), rtol=0, atol=1e-5)
    assert wide[16, 16] > 0.9 and (wide[:, 32:] == -1).all()


def test_wrapping_keeps_all_of_a_subject() -> None:
    inside, corner = render([circle(), circle(x=0.0, y=0.0)], 1)[:, 0, 0]
    assert corner[0, 0] > 0.9 and corner[-1, -1] > 0.9 and corner[32, 32] == -1
    torch.testing.assert_close(torch.roll(corner, (32, 32), (0, 1)), inside, rtol=0, atol=1e-5)


def test_later_subjects_lie_on_top() -> None:
    below = Subject("square", "red", "still", None, 0.5, 0.5)
    above = Subject("circle", "blue", "left", "fast", 0.5, 0.5, radius=0.1)
    alone = Scene((below,), "grey")
    both, one = to_frames(render([Scene((below, above), "grey"), alone], 2))
    assert tuple(both[0, 32, 32].tolist()) == COLOURS["blue"]
    assert tuple(both[0, 32, 32 + 7].tolist()) == COLOURS["red"]
    assert tuple(both[0, 0, 0].tolist()) == BACKGROUNDS["grey"]
    assert tuple(one[0, 32, 32].tolist()) == COLOURS["red"]


def test_frames_are_the_layout_of_a_video_file() -> None:
    video = render(scenes(3), 5, (32, 48))
    assert video.shape == (3, 3, 5, 32, 48) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    frames = to_frames(video)
    assert frames.shape == (3, 5, 32, 48, 3) and frames.dtype == torch.uint8
    torch.testing.assert_close(
        frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1, video, rtol=0, atol=0.5 / 127.5 + 1e-6
    )


def test_shapes_are_apart() -> None:
    """No outline covers another by more than 0.85 (intersection over union)."""
    masks = {name: shape_field(name) < 0 for name in SUBJECTS[:8]}
    for a in masks:
        for b in masks:
            if a != b:
                overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
                assert overlap < 0.85, (a, b, float(overlap))


def test_polygon_distance_of_a_square_is_known() -> None:
    x = torch.tensor([0.0, 2.0, 2.0, 0.5, -1.0], dtype=torch.float64)
    y = torch.tensor([0.0, 0.0, 2.0, 0.9, 0.3], dtype=torch.float64)
    found = polygon_distance(x, y, [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    wanted = torch.tensor([-1.0, 1.0, math.sqrt(2), -0.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.abs(), wanted.abs())
    assert (found[:4].sign() == wanted[:4].sign()).all()


def test_digit_images_are_their_digits() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    for digit in digits.DIGITS:
        images = digits.images_of(digit)
        assert len(set(images)) == digits.IMAGES_PER_DIGIT
        assert {int(labels[i]) for i in images} == {int(digit)}
    zero = digits.digit_field(digits.images_of("0")[0])
    assert zero[25, 25] > 0 and zero[25].min() < 0 and zero[25, 0] > 0  # a hole, a stroke, the outside


def test_without_scikit_learn_shapes_work_and_digits_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._data_set.cache_clear()
    digits.images_of.cache_clear()
    try:
        assert sample_scene(generator(0), subjects=("star",)).subjects[0].name == "star"
        with pytest.raises(UnsupportedError, match=r"pip install scikit-learn"):
            sample_scene(generator(0), subjects=("7",))
    finally:
        digits._data_set.cache_clear()
        digits.images_of.cache_clear()


def test_wrong_scenes_say_what_was_wanted() -> None:
    good = circle("left", "slow").subjects[0]
    with pytest.raises(RequestError, match="red, orange"):
        replace(good, colour="mauve")
    with pytest.raises(RequestError, match="slow, fast"):
        replace(good, speed=None)
    with pytest.raises(RequestError, match="still subject"):
        replace(good, motion="still")
    with pytest.raises(RequestError, match="every digit needs one"):
        replace(good, name="3")
    with pytest.raises(RequestError, match="train, held_out, all"):
        sample_scene(generator(0), "test")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="16x16"):
        render([circle()], 0)
