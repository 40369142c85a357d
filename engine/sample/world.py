"""The sample model's little world: what can be in a clip, and how clips are drawn at random.

A clip shows one coloured shape or handwritten digit that stands still or moves at an even pace over a plain
background. The world is a torus: what leaves on one side enters on the other, so a caption stays true for
as long as the video runs. Lengths and places are fractions of the frame, so a scene has no pixel size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, TypeVar

import torch

from kinema.errors import RequestError
from kinema.sample.digits import DIGITS, images_of
from kinema.sample.shapes import SHAPES

SUBJECTS = SHAPES + DIGITS

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (232, 40, 44),
    "orange": (255, 136, 0),
    "yellow": (255, 228, 40),
    "green": (44, 196, 72),
    "blue": (48, 112, 255),
    "purple": (150, 64, 224),
    "pink": (255, 124, 196),
    "white": (248, 248, 248),
}

# Darker and duller than every subject colour, so that "blue on grey" and "grey on blue" cannot be confused.
BACKGROUNDS: dict[str, RGB] = {
    "black": (0, 0, 0),
    "grey": (72, 76, 84),
    "blue": (24, 44, 100),
    "green": (20, 72, 48),
    "purple": (64, 36, 96),
    "brown": (92, 58, 36),
}
PLAIN = "black"  # the background of a caption that names none

# A subject moves by a whole number of 64ths of the frame from one frame to the next.
STEPS_ROUND = 64
MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
SPEEDS: dict[str, int] = {"slow": 2, "fast": 4}

# It starts on a grid of 8ths. A latent of the sample model is 8 pixels of 64 wide and 4 frames long, so that a subject
# has moved by whole latents whenever one ends: its shape has to be learned at one offset within their cells, not at
# 64.
STARTS = 8

SUBJECT_RADIUS = 0.19  # the half-width of a subject: 12 of 64 pixels
IMAGES_SHOWN = 12  # of each digit, the most readable

_T = TypeVar("_T")

Split = Literal["train", "held_out", "all"]
_SPLITS = ("train", "held_out", "all")


@dataclass(frozen=True)
class Subject:
    """One thing in a scene: what it is, where it is in frame 0 and how it moves.

    `x`, `y`: its centre as fractions of the frame's width and height, from the top left.
    `radius`: its half-width as a fraction of the frame's shorter side.
    `speed`: None when it stands still. `digit_image`: which of scikit-learn's digit images it is, for a digit.
    """

    name: str
    colour: str
    motion: str
    speed: str | None
    x: float
    y: float
    radius: float = SUBJECT_RADIUS
    digit_image: int | None = None

    def __post_init__(self) -> None:
        _check("subject", self.name, SUBJECTS)
        _check("colour", self.colour, COLOURS)
        _check("motion", self.motion, MOTIONS)
        if self.motion == "still":
            if self.speed is not None:
                raise RequestError(f"a still subject has no speed: got {self.speed!r}, wanted None")
        else:
            _check("speed", self.speed, SPEEDS)
        if (self.digit_image is not None) != (self.name in DIGITS):
            raise RequestError(
                f"digit_image is for digits, and every digit needs one: got {self.digit_image} for {self.name!r}"
            )
        if not 0.05 <= self.radius <= 0.25:
            raise RequestError(f"radius is a fraction of the frame: got {self.radius}, wanted 0.05 to 0.25")

    @property
    def velocity(self) -> tuple[int, int]:
        """Frame-to-frame movement (right, down) in 64ths of the frame."""
        dx, dy = MOTIONS[self.motion]
        pace = SPEEDS[self.speed] if self.speed is not None else 0
        return dx * pace, dy * pace

    def position(self, frame: int) -> tuple[float, float]:
        """Its centre (x, y) in [0, 1) at a frame; exactly periodic, since the travelled part is an integer."""
        vx, vy = self.velocity
        return (
            (self.x + vx * frame % STEPS_ROUND / STEPS_ROUND) % 1.0,
            (self.y + vy * frame % STEPS_ROUND / STEPS_ROUND) % 1.0,
        )

    @property
    def period(self) -> int:
        """The number of frames after which it is back where it started."""
        pace = SPEEDS[self.speed] if self.speed is not None else STEPS_ROUND
        return STEPS_ROUND // pace


@dataclass(frozen=True)
class Scene:
    """What a clip shows: subjects, the last on top, before a plain background."""

    subjects: tuple[Subject, ...]
    background: str = PLAIN

    def __post_init__(self) -> None:
        _check("background", self.background, BACKGROUNDS)

    @property
    def period(self) -> int:
        """The number of frames after which the clip repeats exactly."""
        return math.lcm(*(subject.period for subject in self.subjects))

    def describe(self) -> Description:
        """All that a caption can say about a scene of one subject."""
        if len(self.subjects) != 1:
            raise RequestError(f"captions describe one subject: got a scene of {len(self.subjects)}")
        it = self.subjects[0]
        return Description(it.name, it.colour, it.motion, it.speed, self.background)


@dataclass(frozen=True)
class Description:
    """What a caption says, or what a detector saw. None: not said, or not visible in these frames."""

    subject: str | None = None
    colour: str | None = None
    motion: str | None = None
    speed: str | None = None
    background: str | None = None


def contrasts(colour: str, background: str) -> bool:
    """Whether a subject of this colour stands out from this background; pairs of one name never do."""
    return colour != background and math.dist(COLOURS[colour], BACKGROUNDS[background]) >= 120


def is_held_out(subject: str, colour: str, motion: str) -> bool:
    """Whether a combination is kept out of training, so that it tests understanding and not memory.

    A tenth of every subject's 40 combinations of colour and motion, chosen by a fixed hash: 72 of 720. Every
    subject is still trained in every colour and with every motion.
    """
    return (colour, motion) in _held_out(subject)


@lru_cache(maxsize=len(SUBJECTS))
def _held_out(subject: str) -> frozenset[tuple[str, str]]:
    def order(pair: tuple[str, str]) -> bytes:
        return hashlib.sha256(f"held out 1364: {subject} {pair[0]} {pair[1]}".encode()).digest()

    pairs = sorted(product(COLOURS, MOTIONS), key=order)
    return frozenset(pairs[: len(pairs) // 10])


@lru_cache(maxsize=64)
def combinations(split: Split = "all", subjects: tuple[str, ...] = SUBJECTS) -> tuple[tuple[str, str, str], ...]:
    """The (subject, colour, motion) combinations of a split."""
    _check("split", split, _SPLITS)
    for subject in subjects:
        _check("subject", subject, SUBJECTS)
    found = tuple(
        combination
        for combination in product(subjects, COLOURS, MOTIONS)
        if split == "all" or is_held_out(*combination) == (split == "held_out")
    )
    if not found:
        raise RequestError(f"no combination of {', '.join(subjects)} is in the split {split!r}")
    return found


def sample_scene(generator: torch.Generator, split: Split = "train", subjects: Sequence[str] = SUBJECTS) -> Scene:
    """One random scene, the same for the same state of the generator.

    Combinations of the split are equally likely. Half of the backgrounds are plain, the rest coloured, and
    every subject contrasts with its background. A subject starts anywhere along its path and wholly inside
    the frame across it, so nothing stays cut in two; either way on the grid of starts. `subjects` narrows the
    choice, for a curriculum.
    """
    drawn = torch.rand(6, generator=generator, dtype=torch.float64, device="cpu").tolist()
    name, colour, motion = _pick(combinations(split, tuple(subjects)), drawn[0])
    coloured = tuple(b for b in BACKGROUNDS if b != PLAIN and contrasts(colour, b))
    background = PLAIN if drawn[1] < 0.5 else _pick(coloured, 2 * drawn[1] - 1)
    moves_x, moves_y = (way != 0 for way in MOTIONS[motion])
    subject = Subject(
        name=name,
        colour=colour,
        motion=motion,
        speed=None if motion == "still" else _pick(tuple(SPEEDS), drawn[2]),
        x=_start(drawn[3], wrapped=moves_x),
        y=_start(drawn[4], wrapped=moves_y),
        digit_image=_pick(images_of(name)[:IMAGES_SHOWN], drawn[5]) if name in DIGITS else None,
    )
    return Scene((subject,), background)


def _start(at: float, *, wrapped: bool) -> float:
    """Where on the grid of starts a subject's centre lies.

    Unless it may wrap around the frame, there is room for the widest one, a star, whose tips are 1.3 radii away.
    """
    room = 0 if wrapped else math.ceil(1.3 * SUBJECT_RADIUS * STARTS)
    return _pick(range(room, STARTS if wrapped else STARTS - room + 1), at) / STARTS


def _pick(choices: Sequence[_T], at: float) -> _T:
    return choices[int(at * len(choices))]


def _check(what: str, got: object, known: Collection[str]) -> None:
    if got not in known:
        raise RequestError(f"{what}: got {got!r}, wanted one of {', '.join(known)}")
