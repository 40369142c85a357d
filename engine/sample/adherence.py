"""Prompt adherence in the little world: what a clip shows, by exact classical detectors and no learned judge.

`observe` reads a clip, `judge` compares it with what was asked for. Frames may come from the renderer or from
a generator: the background is estimated from the clip, positions live on the torus, and templates are blurred
to several degrees, so that a soft edge or a little noise does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from kinema.errors import RequestError
from kinema.sample.templates import centroids, classify
from kinema.sample.world import BACKGROUNDS, COLOURS, RGB, SPEEDS, STEPS_ROUND, Description

_LEAST_CONTRAST = 48.0  # RGB distance of a subject from its background, below which there is no subject
_LEAST_AREA, _MOST_AREA = 0.015, 0.22  # of the frame; rendered subjects cover 0.03 to 0.16
_COLOUR_TOLERANCE = 60.0  # RGB distance to the nearest palette colour, above which it is none of them
_DILUTION = 0.35  # of a thin stroke by its background, after a blur
_FLOOR = 0.25  # opacities below it are noise
_FRAMES_READ = 5  # frames whose shape and colour are looked at
_CONSENT = 0.75  # share of them that must agree


@dataclass(frozen=True)
class Observation:
    """What a clip shows. `seen` holds None for whatever could not be determined.

    `present`: a subject of plausible size is in every frame. `velocity`: the mean frame-to-frame movement
    (right, down) in frame widths and heights, None for a single frame or an absent subject.
    `subject_share`: the share of the frames looked at that agree on the subject. `area`: its mean share of
    the frame, and `area_variation` the standard deviation of its area over the mean.
    """

    seen: Description
    present: bool
    velocity: tuple[float, float] | None = None
    subject_share: float = 0.0
    area: float = 0.0
    area_variation: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether a clip shows what was wanted. None: not asked for, or not visible in a single frame."""

    wanted: Description
    observation: Observation
    subject_ok: bool | None
    colour_ok: bool | None
    motion_ok: bool | None
    speed_ok: bool | None
    background_ok: bool | None

    @property
    def all_ok(self) -> bool:
        """Subject, colour and motion, as far as they were asked for; the project's joint adherence."""
        return all(ok is not False for ok in (self.subject_ok, self.colour_ok, self.motion_ok))


def judge(frames: np.ndarray, wanted: Description) -> Verdict:
    """Whether uint8 frames [T, H, W, 3] show what is wanted; see `captions.parse_caption` for a prompt.

    Motion and speed of a single frame are None. A clip without a clear subject fails whatever was asked.
    """
    observation = observe(frames)
    seen = observation.seen
    single = len(frames) == 1

    def ok(want: str | None, got: str | None) -> bool | None:
        return None if want is None else got == want

    return Verdict(
        wanted=wanted,
        observation=observation,
        subject_ok=ok(wanted.subject, seen.subject),
        colour_ok=ok(wanted.colour, seen.colour),
        motion_ok=None if single else ok(wanted.motion, seen.motion),
        speed_ok=None if single else ok(wanted.speed, seen.speed),
        background_ok=ok(wanted.background, seen.background),
    )


def observe(frames: np.ndarray) -> Observation:
    """Read the background, subject, colour, motion and speed off uint8 frames [T, H, W, 3]."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise RequestError(f"got {frames.dtype} {frames.shape}, wanted uint8 frames [T, H, W, 3] with T of 1 or more")
    video = frames.astype(np.float32)
    ground = np.median(video.reshape(-1, 3), axis=0)  # the subject covers a tenth of the pixels
    background = _nearest(ground, BACKGROUNDS)
    contrast = np.sqrt(((video - ground) ** 2).sum(-1))
    # Each frame by itself, so that a subject which fades away is not lent the contrast of the others.
    strongest = np.quantile(contrast.reshape(len(video), -1), 1 - _LEAST_AREA / 2, axis=1)
    if strongest.min() < _LEAST_CONTRAST:
        return Observation(Description(background=background), present=False)
    inner = contrast > 0.75 * strongest[:, None, None]
    paint = np.stack([np.median(frame[mask], axis=0) for frame, mask in zip(video, inner, strict=True)])
    axis = paint - ground
    along = ((video - ground) * axis[:, None, None]).sum(-1)
    opacity = np.clip(along / (axis**2).sum(-1)[:, None, None], 0, 1)
    opacity[opacity < _FLOOR] = 0
    look = np.unique(np.linspace(0, len(video) - 1, _FRAMES_READ).round().astype(int))
    colour, _ = _consent([_nearest(paint[i], COLOURS, ground) for i in look])
    areas = opacity.mean((1, 2))
    if areas.min() < _LEAST_AREA or areas.max() > _MOST_AREA:
        return Observation(Description(colour=colour, background=background), present=False)

    centres = centroids(opacity)
    velocity = motion = speed = None
    if len(video) > 1:
        steps = (np.diff(centres, axis=0) + 0.5) % 1.0 - 0.5
        mean = steps.mean(0)
        velocity = (float(mean[0]), float(mean[1]))
        motion, speed = _motion(mean)
        # No subject of this world turns back, stops half-way or trembles on the spot.
        halves = np.array_split(steps, 2) if len(steps) > 1 else [steps]
        if any(_motion(half.mean(0))[0] != motion for half in halves) or (
            motion == "still" and _motion(np.abs(steps).mean(0))[0] != "still"
        ):
            motion = speed = None
    subject, share = _consent([classify(opacity[i], centres[i]) for i in look])
    return Observation(
        Description(subject, colour, motion, speed, background),
        present=True,
        velocity=velocity,
        subject_share=share,
        area=float(areas.mean()),
        area_variation=float(areas.std() / areas.mean()),
    )


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a proportion: sound near 0 and 1, where p ± 2σ is not.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not 0 <= successes <= trials or trials == 0 or not 0 < confidence < 1:
        raise RequestError(
            f"got {successes} successes of {trials} at confidence {confidence}; "
            "wanted 0 <= successes <= trials, 1 trial or more and a confidence between 0 and 1"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - spread) / scale
    return low, 1.0 if successes == trials else (centre + spread) / scale


def _consent(votes: list[str | None]) -> tuple[str | None, float]:
    """What the frames agree on, or None when fewer than _CONSENT do, and the share of the frames that do."""
    favourite = max(dict.fromkeys(votes), key=votes.count)
    share = votes.count(favourite) / len(votes)
    return (favourite if share >= _CONSENT else None), share


def _nearest(rgb: np.ndarray, palette: dict[str, RGB], ground: np.ndarray | None = None) -> str | None:
    """The palette colour that `rgb` is, pure or with up to _DILUTION of the ground mixed in; None if none is near."""
    distances: dict[str, float] = {}
    for name, colour in palette.items():
        pure = np.asarray(colour, np.float32)
        if ground is not None:
            axis = pure - ground
            share = np.clip((rgb - ground) @ axis / max(float(axis @ axis), 1.0), 1 - _DILUTION, 1)
            pure = ground + share * axis
        distances[name] = math.dist(rgb, pure)
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= _COLOUR_TOLERANCE else None


@lru_cache(maxsize=1)
def _paces() -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The speeds from slow to fast, and the bounds between still, the slowest and each next one."""
    ordered = sorted(SPEEDS.items(), key=lambda pair: pair[1])
    between = [math.sqrt(a[1] * b[1]) for a, b in pairwise(ordered)]
    return tuple(name for name, _ in ordered), tuple(b / STEPS_ROUND for b in (ordered[0][1] / 2, *between))


def _motion(velocity: np.ndarray) -> tuple[str | None, str | None]:
    """Motion and speed of a velocity (right, down) in frames a frame; (None, None) for a slanting path."""
    names, bounds = _paces()
    x, y = float(velocity[0]), float(velocity[1])
    pace = max(abs(x), abs(y))
    level = sum(pace >= bound for bound in bounds)
    if level == 0:
        return "still", None
    if min(abs(x), abs(y)) > pace / 2:
        return None, None
    if abs(x) > abs(y):
        return ("right" if x > 0 else "left"), names[level - 1]
    return ("down" if y > 0 else "up"), names[level - 1]
