"""What PyAV reads: videos in containers, as upright RGB frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from kinema.errors import RequestError
from kinema.media.files import open_file
from kinema.media.limits import MAX_FRAME_PIXELS, check_size

# Containers that hold the video themselves, and only from files: playlists could name other files and addresses.
CONTAINER_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,ivf,h264,hevc",
}
# A stream may change its size midway. Coded frames are a little larger than the part of them that is shown.
DECODER_OPTIONS = {"max_pixels": str(MAX_FRAME_PIXELS * 9 // 8)}
DECODER_THREADS = 2  # each has frames of its own in memory


class ContainerReader:
    """The frames of a file's first video stream, as they are stored, upright.

    Iterating gives uint8 [H, W, 3]. `rate` (mean frames per second, None if the file does not say) is known from the
    first frame on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rate: Fraction | None = None

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        with (
            open_file(self.path, "video") as file,
            self._opened(file) as container,
        ):
            if not container.streams.video:
                raise RequestError(f"cannot read video {self.path}: the file has no video stream")
            stream = container.streams.video[0]
            check_size(stream.width, stream.height, MAX_FRAME_PIXELS, f"video {self.path}")
            stream.codec_context.options = DECODER_OPTIONS
            stream.codec_context.thread_count = DECODER_THREADS
            stream.thread_type = "AUTO"
            self.rate = stream.average_rate
            matrix: Sequence[int] | None = None
            for frame in container.decode(stream):
                matrix = matrix or _display_matrix(frame)
                yield _upright(frame.to_ndarray(format="rgb24"), *matrix)

    def _opened(self, file: BinaryIO) -> Any:
        try:
            return av.open(
                file,
                "r",
                metadata_errors="replace",
                options=DECODER_OPTIONS,
                container_options=CONTAINER_OPTIONS,
            )
        except av.error.ArgumentError as error:  # a format that is not on the list
            raise RequestError(
                f"cannot read video {self.path}: it is no video that kinema reads (mp4, mov, mkv, webm, avi, …)"
            ) from error


def _display_matrix(frame: av.VideoFrame) -> Sequence[int]:
    """(a, b, c, d): where the file wants a stored point (column, row) shown, at (a·column + c·row, b·column + d·row).

    ISO/IEC 14496-12, 8.5.3.3, without its translation: phones store the sensor's frame and how to show it. It is read
    from the first frame only: a PyAV frame whose side data was read lives until the next garbage collection.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(matrix, np.int32, count=5).tolist()
    return a, b, c, d


def _upright(pixels: npt.NDArray[Any], a: int, b: int, c: int, d: int) -> npt.NDArray[np.uint8]:
    """[H, W, 3] turned and mirrored as the matrix says, or by the nearest such turn for other angles or scales."""
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
