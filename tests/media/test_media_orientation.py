"""Videos that ask to be turned or mirrored: all eight ways, as the container's matrix says them."""

from __future__ import annotations

import struct

import av
import numpy as np
import pytest

from kinema.media.inputs import load_video
from kinema.media.pixels import read_video

# (a, b, c, d) takes column, row to a·column + c·row, b·column + d·row; and what numpy does to rows and columns
WAYS = {
    "upright": ((1, 0, 0, 1), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "a turn to the right": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a turn to the left": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
    "nearly upright": ((0.9, 0.3, -0.3, 0.9), lambda p: p),
    "nearly a turn to the right, larger": ((-0.5, 2, -2, -0.5), lambda p: np.rot90(p, -1)),
    "nothing": ((0, 0, 0, 0), lambda p: p),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    """An mp4 of frames that no turn and no mirror leaves as they are."""
    path = tmp_path_factory.mktemp("plain") / "in.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=64, height=32, options={"crf": "4"})
        stream.pix_fmt = "yuv420p"
        for t in range(3):
            frame = np.zeros((32, 64, 3), np.uint8)
            frame[:16, :16], frame[:16, 48:], frame[16:, :32] = 255, 160, 40 + 20 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def matrix(a: float, b: float, c: float, d: float) -> bytes:
    """ISO/IEC 14496-12, 8.3.2.3: 16.16 fixed point, the last column 2.30."""
    one = 1 << 16
    values = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]
    return struct.pack(">9i", *(round(value) for value in values))


@pytest.mark.parametrize("way", WAYS)
def test_a_display_matrix(tmp_path, plain, way):
    entries, turn = WAYS[way]
    identity = matrix(1, 0, 0, 1)
    track = plain.rindex(identity)  # the one before it is the whole movie's
    assert plain.count(identity) == 2
    (tmp_path / "plain.mp4").write_bytes(plain)
    (tmp_path / "in.mp4").write_bytes(plain[:track] + matrix(*entries) + plain[track + len(identity) :])
    expected = np.stack([turn(frame) for frame in load_video(tmp_path / "plain.mp4").frames])
    assert np.array_equal(load_video(tmp_path / "in.mp4").frames, expected)
    height, width = expected.shape[1:3]
    pixels = read_video(tmp_path / "in.mp4", height, width)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pixels.frames]), expected)
