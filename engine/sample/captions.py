"""Captions of the little world: a small grammar that writes them, and its inverse that reads them.

A caption says the subject, its colour, how it moves and how fast, and the background. What it leaves out has
a fixed meaning, so that every caption determines its scene: no adverb is slow, no background is
black. Only single images are captioned without a motion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

from kinema.sample.digits import DIGITS
from kinema.sample.shapes import SHAPES
from kinema.sample.world import BACKGROUNDS, COLOURS, PLAIN, Description, Scene

_T = TypeVar("_T")

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_DIRECTIONS: dict[str, tuple[str, ...]] = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
_VERBS = (("moving", "moves"), ("sliding", "slides"), ("drifting", "drifts"), ("gliding", "glides"))
_STILL_VERBS = (("standing", "stands"), ("staying", "stays"))
_ADVERBS = {"slow": ("slowly",), "fast": ("quickly", "fast")}
UNSAID_SPEED = "slow"
_OTHER_SPELLINGS = {"grey": "gray"}

_DIGIT_PHRASES = (
    "{a} {colour} {n}",
    "the {colour} {n}",
    "{a} {colour} handwritten {n}",
    "a handwritten {n} in {colour}",
    "{a} {colour} digit {n}",
    "the {colour} digit {n}",
    "the digit {n} in {colour}",
    "the {colour} number {n}",
    "the number {n} in {colour}",
)

# What each word means to the reader; words of the grammar that mean nothing by themselves are _FILLERS.
_SUBJECT_OF = {
    **{shape: shape for shape in SHAPES},
    **{digit: digit for digit in DIGITS},
    **{word: digit for digit, word in zip(DIGITS, NUMBER_WORDS, strict=True)},
}
_MOTION_OF = {way.split()[-1]: motion for motion, ways in _DIRECTIONS.items() for way in ways} | {"still": "still"}
_SPEED_OF = {adverb: speed for speed, adverbs in _ADVERBS.items() for adverb in adverbs}
_BACKGROUND_OF = {name: name for name in BACKGROUNDS} | {
    other: name for name, other in _OTHER_SPELLINGS.items() if name in BACKGROUNDS
}
_MOVE_WORDS = frozenset(word for pair in _VERBS for word in pair)
_STAY_WORDS = frozenset(word for pair in _STILL_VERBS for word in pair)
_DIGIT_NOUNS = frozenset({"digit", "number", "handwritten"})
_FILLERS = frozenset({"a", "an", "the", "in", "to", "that", "is", "video", "of"})
_BACKGROUND_WORDS = ("on", "against", "background")

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *sorted(_FILLERS),
            *_BACKGROUND_WORDS,
            *COLOURS,
            *_BACKGROUND_OF,
            *_SUBJECT_OF,
            *sorted(_DIGIT_NOUNS),
            *_MOTION_OF,
            *_SPEED_OF,
            *sorted(_MOVE_WORDS | _STAY_WORDS),
        ]
    )
)


def caption(scene: Scene, generator: torch.Generator, *, mention_motion: bool = True) -> str:
    """A random true caption of a scene of one subject, the same for the same state of the generator.

    `mention_motion=False` is for single images, in which nothing can be seen to move.
    """
    said = scene.describe()
    draws = _Draws(generator)
    subject = _subject_phrase(said, draws)
    finite = False
    if mention_motion:
        motion, finite = _motion_phrase(said, draws)
        subject = f"{subject} {motion}"
    if not finite and draws.chance(0.1):
        subject = f"a video of {subject}"

    text = subject
    if said.background != PLAIN or draws.chance(0.15):
        assert said.background is not None
        name = said.background
        if draws.chance(0.3):
            name = _OTHER_SPELLINGS.get(name, name)
        if draws.chance(0.2):
            text = f"on a {name} background, {subject}"
        else:
            text = f"{subject} {draws.pick(('on', 'on', 'against'))} a {name} background"
    if draws.chance(0.5):
        text = text[0].upper() + text[1:]
    return text + ("." if draws.chance(0.3) else "")


def parse_caption(text: str) -> Description | None:
    """What a prompt asks for, or None when it is not understood word for word or contradicts itself.

    The inverse of `caption`, and a little wider: the colour and the motion may be missing (None).
    """
    found = words(text)
    if any(word not in VOCABULARY for word in found):
        return None
    background = PLAIN
    if "background" in found:
        # The only place for these words: on|against a|the COLOUR background.
        end = found.index("background")
        if end < 3 or found[end - 3] not in ("on", "against") or found[end - 2] not in ("a", "an", "the"):
            return None
        if found[end - 1] not in _BACKGROUND_OF:
            return None
        background = _BACKGROUND_OF[found[end - 1]]
        found = found[: end - 3] + found[end + 1 :]
    if any(word in _BACKGROUND_WORDS for word in found):
        return None
    try:
        subject = _only(_SUBJECT_OF, found)
        colour = _only({name: name for name in COLOURS}, found)
        motion = _only(_MOTION_OF, found)
        speed = _only(_SPEED_OF, found)
    except ValueError:
        return None
    if any(word in _BACKGROUND_OF and word not in COLOURS for word in found):
        return None
    moves = any(word in _MOVE_WORDS for word in found)
    stays = any(word in _STAY_WORDS for word in found)
    going = motion is not None and motion != "still"
    if subject is None or moves != going or (stays and motion != "still") or (speed is not None and not going):
        return None
    if subject not in DIGITS and any(word in _DIGIT_NOUNS for word in found):
        return None
    return Description(subject, colour, motion, (speed or UNSAID_SPEED) if going else None, background)


def words(text: str) -> list[str]:
    """The words that the model is given: lower case, punctuation dropped."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def _subject_phrase(said: Description, draws: _Draws) -> str:
    assert said.subject is not None and said.colour is not None
    article = "an" if said.colour[0] in "aeiou" else "a"
    if said.subject in SHAPES:
        return f"{draws.pick((article, article, 'the'))} {said.colour} {said.subject}"
    n = draws.pick((said.subject, NUMBER_WORDS[int(said.subject)]))
    phrase = draws.pick(_DIGIT_PHRASES)
    if phrase.startswith("a handwritten"):
        article = "a"
    return phrase.format(a=article, colour=said.colour, n=n)


def _motion_phrase(said: Description, draws: _Draws) -> tuple[str, bool]:
    """How it moves, and whether that makes the caption a whole sentence ("it moves", not "it moving")."""
    assert said.motion is not None
    still = said.motion == "still"
    participle, finite = draws.pick(_STILL_VERBS if still else (_VERBS[0], *_VERBS))
    lead, verb, is_sentence = draws.pick(
        (
            ("", participle, False),
            ("", participle, False),
            ("", finite, True),
            ("is ", participle, True),
            ("that is ", participle, False),
            ("that ", finite, False),
        )
    )
    if still:
        return f"{lead}{verb} still", is_sentence
    phrase = f"{verb} {draws.pick(_DIRECTIONS[said.motion])}"
    if said.speed is not None and (said.speed != UNSAID_SPEED or draws.chance(0.5)):
        adverb = draws.pick(_ADVERBS[said.speed])
        # "fast" cannot stand before its verb.
        phrase = f"{phrase} {adverb}" if adverb == "fast" or draws.chance(0.5) else f"{adverb} {phrase}"
    return lead + phrase, is_sentence


def _only(meanings: dict[str, str], found: Sequence[str]) -> str | None:
    """The one meaning that the words have here; ValueError when they have two."""
    said = [meanings[word] for word in found if word in meanings]
    if len(said) > 1:
        raise ValueError(f"contradictory or repeated: {said}")
    return said[0] if said else None


class _Draws:
    """Random choices from one draw of the generator, so that every caption uses up the same number."""

    def __init__(self, generator: torch.Generator) -> None:
        self._left: Iterator[float] = iter(
            torch.rand(16, generator=generator, dtype=torch.float64, device="cpu").tolist()
        )

    def chance(self, odds: float) -> bool:
        return next(self._left) < odds

    def pick(self, choices: Sequence[_T]) -> _T:
        return choices[int(next(self._left) * len(choices))]
