"""Where training clips come from: captioned clips without end, each known by its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kinema.sample.captions import VOCABULARY, caption
from kinema.sample.render import render
from kinema.sample.training import generator_for, whole_numbers
from kinema.sample.world import Scene, sample_scene

PHASE = 2


class ClipSource(Protocol):
    """Clip n is always the same clip, so that a resumed run sees what it would have seen.

    words: every word that a caption can hold.
    """

    words: tuple[str, ...]

    def video(self, numbers: Sequence[int], num_frames: int) -> torch.Tensor:
        """The first frames of these clips, [B, 3, num_frames, size, size] in [−1, 1]."""
        ...

    def crops(self, numbers: Sequence[int], num_frames: int, side: int, generator: torch.Generator) -> torch.Tensor:
        """Random windows into these clips in which something is visible, [B, 3, num_frames, side, side]."""
        ...

    def caption(self, number: int, generator: torch.Generator, *, mention_motion: bool) -> str:
        """A caption of the clip, or of its first frame alone."""
        ...


class World:
    """The little world, rendered on the fly, on `device`: no clip is ever seen twice by the VAE.

    known: the words of a model to continue from; words of the captions that it lacks follow them.
    """

    def __init__(self, seed: int, size: int, device: str = "cpu", known: Sequence[str] = ()) -> None:
        self.words = tuple(dict.fromkeys((*known, *VOCABULARY)))
        self.seed = seed
        self.size = size
        self.device = device

    def scene(self, number: int) -> Scene:
        """What clip `number` shows."""
        return sample_scene(generator_for(self.seed, PHASE, number))

    def video(self, numbers: Sequence[int], num_frames: int) -> torch.Tensor:
        return render([self.scene(number) for number in numbers], num_frames, self.size, device=self.device)

    def crops(self, numbers: Sequence[int], num_frames: int, side: int, generator: torch.Generator) -> torch.Tensor:
        """Windows that the subject is in for some of the frames; the world wraps, so a window may too."""
        scenes = [self.scene(number) for number in numbers]
        first = int(whole_numbers(0, 64, (), generator))
        cut = []
        whole = render(scenes, num_frames, self.size, first_frame=first, device=self.device)
        for clip, scene in zip(whole, scenes, strict=True):
            frame = first + int(whole_numbers(0, num_frames, (), generator))
            jitter = whole_numbers(-side // 2, side // 2 + 1, (2,), generator).tolist()
            x, y = scene.subjects[0].position(frame)
            left, top = int(x * self.size) - side // 2 + jitter[0], int(y * self.size) - side // 2 + jitter[1]
            cut.append(clip.roll((-top, -left), dims=(2, 3))[:, :, :side, :side])
        return torch.stack(cut)

    def caption(self, number: int, generator: torch.Generator, *, mention_motion: bool) -> str:
        return caption(self.scene(number), generator, mention_motion=mention_motion)
