"""Reading videos and pictures from files."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from kinema.errors import RequestError
from kinema.media.inputs import load_image, load_video
from kinema.media.video import Video


def clip(frames: int = 7, height: int = 32, width: int = 48) -> np.ndarray:
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[:, : height // 2, :, 0] = 200
    video[:, :, : width // 2, 2] = 150
    for t in range(frames):
        video[t, 4 : 8 + 2 * t, 10:30, 1] = 230
    return video


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.npy", "a/"])
def test_what_was_saved_can_be_read(tmp_path, name):
    frames = clip()
    Video(frames, 12.5).save(f"{tmp_path}/{name}")
    loaded = load_video(f"{tmp_path}/{name}")
    assert isinstance(loaded, Video) and loaded.frames.shape == frames.shape
    assert loaded.fps == (12.5 if name in ("a.mp4", "a.gif", "a.webp") else 16)
    limit = {"a.mp4": 4, "a.gif": 4}.get(name, 0)
    assert np.abs(loaded.frames.astype(int) - frames).mean() <= limit
    part = load_video(f"{tmp_path}/{name}", max_frames=3, fps=Fraction(30000, 1001))
    assert np.array_equal(part.frames, loaded.frames[:3]) and part.fps == Fraction(30000, 1001)


def test_the_untagged_and_the_tagged_are_read_with_their_own_colours(tmp_path):
    """Files of others: BT.601 without tags, as most small clips are."""
    frames = clip()
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=48, height=32, options={"crf": "4"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="itu601")))
        container.mux(stream.encode(None))
    loaded = load_video(tmp_path / "in.mkv")
    assert loaded.fps == 25
    inside = np.s_[:, 2, 6]
    assert np.abs(loaded.frames[inside].astype(int) - frames[inside]).max() <= 5


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_videos_of_phones_are_turned_upright(tmp_path, degrees):
    frames = clip()
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=48, height=32, options={"crf": "4"})
        stream.pix_fmt = "yuv420p"
        if not hasattr(type(stream), "set_display_rotation"):
            pytest.skip("this PyAV (before 18) cannot write a rotation")
        stream.set_display_rotation(degrees)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    upright = np.rot90(frames, degrees // 90, axes=(1, 2))
    loaded = load_video(tmp_path / "in.mp4").frames
    assert loaded.shape == upright.shape
    assert np.abs(loaded.astype(int) - upright).mean() < 8


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for t in (0, 2, 10, 9, 1):
        Image.new("RGB", (8, 6), (t, t, t)).save(tmp_path / f"shot{t}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert load_video(tmp_path).frames[:, 0, 0, 0].tolist() == [0, 1, 2, 9, 10]
    Image.new("RGB", (9, 6)).save(tmp_path / "shot11.png")
    with pytest.raises(RequestError, match=r"several sizes \(6x8, 6x9"):
        load_video(tmp_path)


def test_one_picture_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "in.png")
    assert load_video(tmp_path / "in.png").frames.shape == (1, 6, 8, 3)


def test_what_cannot_be_read_is_named(tmp_path):
    Video(clip(), 16).save(tmp_path / "good.mp4")
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:200])
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "cut.gif").write_bytes(b"GIF89a\x08")
    Image.new("RGB", (8, 8)).save(tmp_path / "rare.png", format="PCX")
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 3), np.float32))
    np.save(tmp_path / "object.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "bare").mkdir()
    videos = {
        "cut.mp4": "cannot read video",
        "text.mp4": "Invalid data",
        "empty.mp4": "cannot read video",
        "list.mp4": "cannot read video",
        "list.m3u8": "cannot read video",
        "cut.gif": "cannot read video",
        "cut.png": "cannot read video",
        "float.npy": r"wanted uint8 \[T, H, W, 3\], got float32",
        "object.npy": "cannot read video",
        "cut.npy": "cannot read video",
        "bare": "holds no pictures",
        "none.mp4": "no such file",
    }
    for name, message in videos.items():
        with pytest.raises(RequestError, match=message) as caught:
            load_video(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    for name in ("cut.png", "text.mp4", "bare", "none.png", "rare.png"):
        with pytest.raises(RequestError, match="cannot read image") as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    for load in (load_image, load_video):
        with pytest.raises(RequestError, match="does not download"):
            load("https://example.com/in.png")
    with pytest.raises(RequestError, match="max_frames"):
        load_video(tmp_path / "good.mp4", max_frames=0)


def test_a_file_without_a_video_stream_says_so(tmp_path):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(RequestError, match="no video stream"):
        load_video(tmp_path / "in.mp4")
