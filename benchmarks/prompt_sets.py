"""Two sets of prompts of the sample model's world that share no scene: what tunes a policy never judges it."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from kinema.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kinema.sample.world import Description

Purpose = Literal["tune", "judge"]


@dataclass(frozen=True)
class Asked:
    """One clip to generate: its prompt, the seed of its noise, and what a detector should find (None: no detector)."""

    prompt: str
    seed: int
    wanted: Description | None = None


def asked(purpose: Purpose, number: int, first: int = 0) -> list[Asked]:
    """`number` clips of a set, from the `first` on: the same in every call. No seed and no scene is in both sets.

    The scenes are random ones, of the combinations that the model was trained on, in captions of its grammar.
    """
    if purpose not in get_args(Purpose):
        raise RequestError(f"prompts of the set {purpose!r}: wanted one of {', '.join(get_args(Purpose))}")
    return list(islice(_all_of(purpose), first, first + number))


def asked_in(path: str, number: int) -> list[Asked]:
    """The first `number` prompts of a text file, one a line; nothing detects what they ask for."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"cannot read {path}: {reason}; wanted a text file with one prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RequestError(f"{path} has no prompts: wanted one a line")
    return [Asked(prompt, seed) for seed, prompt in enumerate(prompts[:number])]


def purpose_of(scene: Description) -> Purpose:
    """The set that a scene belongs to, by a hash of all that a caption says of it."""
    digest = hashlib.sha256(repr(astuple(scene)).encode()).digest()
    return "tune" if digest[0] % 2 else "judge"


def _all_of(purpose: Purpose) -> Iterator[Asked]:
    from kinema.sample.captions import caption
    from kinema.sample.training import generator_for
    from kinema.sample.world import sample_scene

    for seed in count():
        generator = generator_for(seed, 7)
        scene = sample_scene(generator, "train")
        if purpose_of(scene.describe()) == purpose:
            yield Asked(caption(scene, generator), seed, scene.describe())
