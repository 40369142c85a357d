"""A video in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinema.errors import RequestError
from kinema.media.formats import frame_rate
from kinema.media.staging import check_writable
from kinema.media.writer import open_video

DEFAULT_FPS = 16.0


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """`frames` are uint8 [T, H, W, 3] RGB; `fps` is frames per second (a float or a Fraction)."""

    frames: npt.NDArray[np.uint8]
    fps: float | Fraction = DEFAULT_FPS

    def __post_init__(self) -> None:
        shape, dtype = self.frames.shape, self.frames.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise RequestError(f"a video's frames must be uint8 [T, H, W, 3], got {dtype} {list(shape)}")
        frame_rate(self.fps)

    @property
    def num_frames(self) -> int:
        return int(self.frames.shape[0])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def seconds(self) -> float:
        return self.num_frames / float(self.fps)

    def save(self, path: str | os.PathLike[str], *, crf: int | None = None) -> Path:
        """Write to `path` and return it. The suffix gives the format:

        .mp4 (H.264, even sizes), .gif (256 colours a frame), .webp (lossless), .npy (the frames as they are),
        .png or .jpg (one frame), and no suffix or a final '/' for a folder of frame_00000.png, ….

        An existing file is replaced, and only once the new one is whole. `crf` is the quality of mp4, 0
        (lossless) to 51 (worst), 18 if not given. Raises OutputError if it cannot be written as asked.
        """
        check_writable(path, fps=self.fps, num_frames=self.num_frames, height=self.height, width=self.width)
        with open_video(path, self.fps, crf=crf) as writer:
            writer.write(self.frames)
        return Path(path)

    def __repr__(self) -> str:
        rate = float(self.fps)
        return f"Video({self.num_frames} frames of {self.width}x{self.height}, {rate:g} fps, {self.seconds:.2f} s)"
