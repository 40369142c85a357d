"""A user's own clips as training data: files beside their captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kinema.errors import RequestError
from kinema.media.inputs import load_video
from kinema.sample.captions import words
from kinema.sample.source import PHASE
from kinema.sample.training import generator_for, whole_numbers

CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".npy")
DECODED_AT_ONCE = 256


class ClipFolder:
    """`name.mp4` (or another video, or a .npy of uint8 [T, H, W, 3]) with its captions, one a line, in `name.txt`.

    Frames are scaled so that the shorter side fits and cut to a square in the middle. Clip n is file n mod the
    number of files, from a start that n decides. known: the words of a model to continue from; new ones follow them.
    """

    def __init__(
        self, folder: str | os.PathLike[str], size: int, least_frames: int, seed: int = 0, known: Sequence[str] = ()
    ) -> None:
        """Raises RequestError if a clip has no caption or fewer than `least_frames` frames."""
        self.folder = Path(folder)
        self.size = size
        self.seed = seed
        if not self.folder.is_dir():
            raise RequestError(
                f"{self.folder} is not a folder: wanted one with clips and captions (name.mp4, name.txt)"
            )
        self.files = sorted(p for p in self.folder.iterdir() if p.suffix.lower() in CLIP_SUFFIXES)
        if not self.files:
            raise RequestError(f"{self.folder} holds no clips: wanted files ending in {', '.join(CLIP_SUFFIXES)}")
        self.captions = [_captions_of(path) for path in self.files]
        captioned = sorted({word for lines in self.captions for line in lines for word in words(line)})
        self.words = tuple(dict.fromkeys((*known, *captioned)))
        # as many decoded clips as a batch draws from stay in memory
        self._frames = lru_cache(maxsize=DECODED_AT_ONCE)(self._decode)
        self.lengths = [len(self._frames(i)) for i in range(len(self.files))]
        for path, length in zip(self.files, self.lengths, strict=True):
            if length < least_frames:
                raise RequestError(f"{path} has {length} frames: wanted at least {least_frames}, or train with fewer")

    def video(self, numbers: Sequence[int], num_frames: int) -> torch.Tensor:
        return torch.stack([self._clip(number, num_frames) for number in numbers])

    def crops(self, numbers: Sequence[int], num_frames: int, side: int, generator: torch.Generator) -> torch.Tensor:
        cut = []
        for number in numbers:
            top, left = whole_numbers(0, self.size - side + 1, (2,), generator).tolist()
            cut.append(self._clip(number, num_frames)[:, :, top : top + side, left : left + side])
        return torch.stack(cut)

    def caption(self, number: int, generator: torch.Generator, *, mention_motion: bool) -> str:
        lines = self.captions[number % len(self.files)]
        return lines[int(whole_numbers(0, len(lines), (), generator))]

    def _clip(self, number: int, num_frames: int) -> torch.Tensor:
        """[3, num_frames, size, size] in [−1, 1]."""
        file = number % len(self.files)
        spare = max(0, self.lengths[file] - num_frames)
        start = int(whole_numbers(0, spare + 1, (), generator_for(self.seed, PHASE, number)))
        frames = torch.from_numpy(self._frames(file)[start : start + num_frames])
        return frames.permute(3, 0, 1, 2).float() / 127.5 - 1

    def _decode(self, file: int) -> np.ndarray:
        """uint8 [T, size, size, 3] of a file."""
        return np.stack([_square(frame, self.size) for frame in load_video(self.files[file]).frames])


def _captions_of(clip: Path) -> list[str]:
    path = clip.with_suffix(".txt")
    if not path.is_file():
        raise RequestError(f"{clip} has no caption: wanted {path.name} beside it, one caption a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"{path} is empty: wanted one caption a line")
    return lines


def _square(frame: np.ndarray, size: int) -> np.ndarray:
    height, width = frame.shape[:2]
    if (height, width) == (size, size):
        return frame
    scale = size / min(height, width)
    picture = Image.fromarray(frame).resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.LANCZOS
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))
