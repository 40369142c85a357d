"""H.264 in mp4 through PyAV: yuv420p, BT.709, limited range, and tagged as that."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from kinema.errors import OutputError

if TYPE_CHECKING:
    from av.video.stream import VideoStream

CODEC = "libx264"
DEFAULT_CRF = 18
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_BT709 = 1  # the code point of BT.709 for matrix, primaries and transfer alike (ITU-T H.273)


def check_encoder() -> None:
    if CODEC not in av.codecs_available:
        raise OutputError(
            f"this build of PyAV has no {CODEC} encoder: install av from PyPI, or write .gif, .webp or .npy"
        )


class Mp4Encoder:
    """Encodes chunk by chunk in bounded memory. Errors of FFmpeg come out as OSError."""

    def __init__(self, place: Path, fps: Fraction, crf: int) -> None:
        self._fps = fps
        self._crf = crf
        self._count = 0
        self._stream: VideoStream | None = None
        self._reformatter = VideoReformatter()
        # Milliseconds, FFmpeg's default, would cut the last frame of most clips short.
        ticks = fps.numerator * math.ceil(1000 / fps.numerator)
        options = {"movflags": "+faststart", "movie_timescale": str(ticks)}
        with _os_errors():
            self._container = av.open(str(place), "w", format="mp4", container_options=options)

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        """frames: [t, H, W, 3], even H and W."""
        with _os_errors():
            if self._stream is None:
                self._stream = self._add_stream(height=frames.shape[1], width=frames.shape[2])
            for frame in frames:
                picture = self._yuv420p(frame)
                picture.pts, picture.time_base = self._count, 1 / self._fps
                self._count += 1
                self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        assert self._stream is not None
        with _os_errors():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError, av.FFmpegError):
            self._container.close()

    def _add_stream(self, *, height: int, width: int) -> VideoStream:
        time_base = 1 / self._fps
        # libx264's macroblock tree makes files of the same frames differ, in about one run of a hundred for small
        # clips. Without it they are a tenth larger, and one seed gives one file.
        options = {"crf": str(self._crf), "mbtree": "0"}
        stream = cast(
            "VideoStream",
            self._container.add_stream(
                CODEC, rate=self._fps, width=width, height=height, time_base=time_base, options=options
            ),
        )
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        return stream

    def _yuv420p(self, frame: npt.NDArray[np.uint8]) -> av.VideoFrame:
        # Without the matrix and the ranges swscale takes BT.601, and the tags above would be a lie.
        # AREA averages each 2x2 block into its colour sample, which is nearest to the picture.
        return self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation="AREA",
        )


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror or str(error)) from error
