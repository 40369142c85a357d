"""Writes a video chunk by chunk, in memory bounded by a chunk (GIF and WebP collect their frames)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kinema.errors import KinemaError, OutputError, RequestError
from kinema.media.formats import FOLDER, check_fits, frame_rate
from kinema.media.host_copy import to_host
from kinema.media.postprocess import to_uint8
from kinema.media.staging import Staging, cannot_write, check_writable

# What an encoder or the file system raises when it cannot go on; all of it reaches the user as one OutputError.
_WRITE_ERRORS = (OSError, RuntimeError, ValueError, MemoryError, OverflowError, struct.error)


class Encoder(Protocol):
    """Turns frames into one file or folder under a temporary name."""

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        """frames [t, H, W, 3], t ≥ 1."""

    def finish(self) -> None:
        """Write what is left, and close. Called at most once, after at least one `write`."""

    def abandon(self) -> None:
        """Close whatever is open, in any state; never raises."""


def open_video(path: str | os.PathLike[str], fps: float | Fraction, *, crf: int | None = None) -> VideoWriter:
    """A writer for `path`, whose suffix gives the format.

        with open_video("out.mp4", 16) as writer:
            for chunk in chunks:              # uint8 [t, H, W, 3]
                writer.write(chunk)

    At the end of the block the file takes its name and replaces what was there. If the block or a write
    fails, or is interrupted, nothing new is left on the disk and what was there before still is.
    `crf` is the quality of mp4: 0 (lossless) to 51, 18 if not given. Raises OutputError as `check_writable` does.
    """
    return VideoWriter(path, fps, crf=crf)


class VideoWriter:
    """See `open_video`. `num_frames` counts what has been written so far."""

    def __init__(self, path: str | os.PathLike[str], fps: float | Fraction, *, crf: int | None = None) -> None:
        self.fps = frame_rate(fps)
        self.destination = check_writable(path, fps=self.fps)
        if crf is not None and self.destination.format.name != "mp4":
            raise RequestError(f"crf={crf} is an option of mp4, and {self.destination.shown} is not: leave it out")
        if crf is not None and crf not in range(52):
            raise RequestError(f"crf must be a whole number from 0 (lossless) to 51, got {crf}")
        self.num_frames = 0
        self._crf = crf
        self._size: tuple[int, int] | None = None
        self._staging: Staging | None = None
        self._encoder: Encoder | None = None

    def __enter__(self) -> VideoWriter:
        with self._clean_up_on_error():
            self._staging = Staging(self.destination)
            self._staging.create()
            self._encoder = self._make_encoder(self._staging)
        return self

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        """Append frames, uint8 [t, H, W, 3]; H and W are those of the first call. t = 0 does nothing."""
        if self._encoder is None:
            raise RequestError("this writer is not open: use it as `with open_video(path, fps) as writer:`")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise RequestError(f"frames must be uint8 [t, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        if len(frames) == 0:
            return
        height, width = frames.shape[1:3]
        if self._size is None:
            self._size = (height, width)
        if (height, width) != self._size:
            raise RequestError(
                f"all frames must have one size: got {height}x{width} after {self._size[0]}x{self._size[1]}"
            )
        total = self.num_frames + len(frames)
        check_fits(self.destination, num_frames=total, height=height, width=width)
        with self._clean_up_on_error():
            self._encoder.write(frames)
        self.num_frames = total

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard()
        if self._staging is None:
            return
        self.complete()
        with self._clean_up_on_error():
            self._staging.publish()
        self._staging = None

    def complete(self) -> None:
        """Write what is left. The file takes its name at the end of the block: of several files none does so before
        the others are complete, too.
        """
        if self._encoder is None or self._staging is None:
            return
        with self._clean_up_on_error():
            if self.num_frames == 0:
                raise OutputError(f"cannot write {self.destination.shown}: no frames were given")
            self._encoder.finish()
            self._staging.settle()
        self._encoder = None

    @contextmanager
    def _clean_up_on_error(self) -> Iterator[None]:
        """Whatever goes wrong (ctrl-C included), nothing is left behind; failures to write become OutputError."""
        try:
            yield
        except BaseException as error:
            self._discard()
            if isinstance(error, _WRITE_ERRORS) and not isinstance(error, KinemaError):
                raise cannot_write(self.destination, error) from error
            raise

    def _discard(self) -> None:
        encoder, staging = self._encoder, self._staging
        self._encoder = self._staging = None
        try:
            if encoder is not None:
                encoder.abandon()
        finally:
            if staging is not None:
                staging.discard()

    def _make_encoder(self, staging: Staging) -> Encoder:
        name = self.destination.format.name
        if name == "mp4":
            from kinema.media.mp4 import DEFAULT_CRF, Mp4Encoder

            return Mp4Encoder(staging.place, self.fps, DEFAULT_CRF if self._crf is None else self._crf)
        if name == "npy":
            from kinema.media.npy import NpyEncoder

            return NpyEncoder(staging.place)
        from kinema.media.pictures import AnimationEncoder, FolderEncoder, StillEncoder

        if self.destination.format is FOLDER:
            return FolderEncoder(staging.place)
        if self.destination.format.one_frame:
            return StillEncoder(staging.place, name)
        return AnimationEncoder(staging.place, name, self.fps)


def write_clips(
    chunks: Iterator[torch.Tensor],
    paths: Sequence[str | os.PathLike[str]],
    fps: float | Fraction,
    on_frames: Callable[[int], object] | None = None,
) -> None:
    """Frames [B, 3, t, H, W] in [−1, 1], chunk after chunk, into B files. on_frames is given the number written."""
    with ExitStack() as files:
        writers = [files.enter_context(open_video(path, fps)) for path in paths]
        for chunk in to_host(chunks):
            for writer, frames in zip(writers, to_uint8(chunk), strict=True):
                writer.write(frames)
            if on_frames is not None:
                on_frames(chunk.shape[2])
        for writer in writers:
            writer.complete()
