"""Every output format, written and read back by other code than that which wrote it."""

from __future__ import annotations

import stat
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from kinema.errors import KinemaError, OutputError, RequestError
from kinema.media.formats import frame_rate
from kinema.media.inputs import load_video
from kinema.media.pictures import durations
from kinema.media.staging import check_writable
from kinema.media.video import Video
from kinema.media.writer import open_video
from kinema.request.output import VideoOutput
from kinema.request.stats import Stats

RATES = [
    (16, Fraction(16)),
    (12.5, Fraction(25, 2)),
    (23.976, Fraction(2997, 125)),
    (24000 / 1001, Fraction(24000, 1001)),
]


def moving_square(frames: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth background with a white square that moves right by two pixels a frame: no two frames are equal."""
    y, x = np.mgrid[0:height, 0:width]
    background = np.stack([255 * x / width, 255 * y / height, 255 - 200 * x / width], axis=-1)
    clip = np.repeat(background[None], frames, axis=0).round().astype(np.uint8)
    for t in range(frames):
        clip[t, height // 4 : height // 2, 2 * t : 2 * t + 12] = 255
    return clip


def decode(path) -> tuple[list[np.ndarray], av.container.InputContainer]:
    container = av.open(str(path))
    return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], container


@pytest.mark.parametrize(("fps", "rate"), RATES)
@pytest.mark.parametrize("frames", [1, 2, 17])
def test_mp4_has_the_right_frames_rate_and_tags(tmp_path, fps, rate, frames):
    clip = moving_square(frames)
    Video(clip, fps).save(tmp_path / "out.mp4")
    decoded, container = decode(tmp_path / "out.mp4")
    stream = container.streams.video[0]
    assert stream.average_rate == rate
    assert stream.frames == frames == len(decoded)
    assert stream.duration * stream.time_base == frames / rate
    context = stream.codec_context
    assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
    assert (context.color_range, context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
    data = (tmp_path / "out.mp4").read_bytes()
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in data  # the container's own tag: BT.709 thrice, limited range
    assert data.index(b"moov") < data.index(b"mdat"), "faststart: a player must not have to fetch the end first"
    assert np.abs(np.stack(decoded).astype(int) - clip).mean() < 3


def test_mp4_colours_are_those_of_its_tags(tmp_path):
    """With BT.601's matrix under BT.709's tag green would be off by 27 levels; with a wrong range, all by 16."""
    patches = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 40, 200)]
    clip = np.zeros((3, 32, 16 * len(patches), 3), np.uint8)
    for i, colour in enumerate(patches):
        clip[:, :, 16 * i : 16 * i + 16] = colour
    Video(clip, 16).save(tmp_path / "out.mp4", crf=4)
    container = av.open(str(tmp_path / "out.mp4"))
    for frame in container.decode(video=0):
        planes = frame.to_ndarray()
        rgb = frame.to_ndarray(format="rgb24")
        for i, colour in enumerate(patches):
            x = 16 * i + 8
            assert np.abs(rgb[16, x].astype(int) - colour).max() <= 4, (colour, rgb[16, x])
            luma = 16 + 219 / 255 * np.dot([0.2126, 0.7152, 0.0722], colour)  # ITU-R BT.709, limited range
            assert abs(planes[16, x] - luma) <= 2, colour


def test_mp4_colour_samples_are_the_mean_of_their_four_pixels(tmp_path):
    """Not one pixel of the four, which makes thin lines flicker in colour, and not a wider blur."""
    blocks = np.random.default_rng(0).integers(0, 256, (1, 16, 2, 16, 2, 3))
    blocks = (blocks + 2 * blocks.mean(axis=(2, 4), keepdims=True)) / 3  # the four differ, and blocks differ more
    clip = blocks.reshape(1, 32, 32, 3).round().astype(np.uint8)
    Video(clip).save(tmp_path / "out.mp4", crf=1)
    planes = decode_planes(tmp_path / "out.mp4")
    mean = clip.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    luma = mean @ [0.2126, 0.7152, 0.0722]
    blue = 128 + 224 / 255 * (mean[..., 2] - luma) / 1.8556
    red = 128 + 224 / 255 * (mean[..., 0] - luma) / 1.5748
    assert np.abs(planes[32:40].reshape(16, 16) - blue).mean() < 1
    assert np.abs(planes[40:48].reshape(16, 16) - red).mean() < 1


def decode_planes(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray()


def test_mp4_quality_follows_crf(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    sizes = []
    for crf in (0, 18, 45):
        Video(noise).save(tmp_path / "out.mp4", crf=crf)
        sizes.append((tmp_path / "out.mp4").stat().st_size)
    assert sizes[0] > 1.2 * sizes[1] > 2 * sizes[2]
    Video(noise).save(tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").stat().st_size == sizes[1]


@pytest.mark.parametrize(
    ("height", "width", "hint"), [(48, 63, "width 62 or 64"), (3, 64, "height 2 or 4"), (35, 47, "height 34 or 36")]
)
def test_odd_sizes_are_refused_by_mp4_and_taken_by_the_rest(tmp_path, height, width, hint):
    clip = moving_square(3, height, width)
    with pytest.raises(OutputError, match=hint) as caught:
        Video(clip).save(tmp_path / "out.mp4")
    assert ".gif, .webp, .npy" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    for name in ("a.gif", "a.webp", "a.npy", "a/"):
        Video(clip).save(f"{tmp_path}/{name}")
        assert load_video(f"{tmp_path}/{name}").frames.shape == clip.shape


@pytest.mark.parametrize("fps", [16, 12.5, 24000 / 1001, 50])
@pytest.mark.parametrize("frames", [1, 2, 17])
def test_gif(tmp_path, fps, frames):
    clip = moving_square(frames)
    Video(clip, fps).save(tmp_path / "out.gif")
    with Image.open(tmp_path / "out.gif") as gif:
        shown = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(gif)]
        assert gif.info.get("loop", 0) == 0
    assert len(shown) == frames
    starts = np.cumsum([0, *(duration for _, duration in shown)])
    assert np.abs(starts - np.arange(frames + 1) * 1000 / fps).max() <= 5
    assert np.abs(np.stack([f for f, _ in shown]).astype(int) - clip).mean() < 5


@pytest.mark.parametrize("fps", [16, 12.5, 24000 / 1001, 120])
@pytest.mark.parametrize("frames", [1, 2, 17])
def test_webp_is_lossless(tmp_path, fps, frames):
    clip = moving_square(frames)
    Video(clip, fps).save(tmp_path / "out.webp")
    shown, starts = [], [0.0]
    with Image.open(tmp_path / "out.webp") as webp:
        for picture in ImageSequence.Iterator(webp):
            shown.append(np.asarray(picture.convert("RGB")))
            starts.append(starts[-1] + picture.info.get("duration", 0))
    assert np.array_equal(np.stack(shown), clip)
    if frames > 1:
        assert np.abs(np.array(starts) - np.arange(frames + 1) * 1000 / fps).max() <= 0.5


@pytest.mark.parametrize("path", ["clip", "clip/", "clip.mp4/"])
def test_a_folder_of_png_files(tmp_path, path):
    clip = moving_square(12)
    Video(clip).save(f"{tmp_path}/{path}")
    files = sorted((tmp_path / path).iterdir())
    assert [file.name for file in files] == [f"frame_{t:05d}.png" for t in range(12)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), clip)
    Video(clip[:3]).save(f"{tmp_path}/{path}")
    assert len(list((tmp_path / path).iterdir())) == 3, "frames of an earlier, longer video must not stay"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.JPEG"])
def test_stills(tmp_path, name):
    clip = moving_square(1)
    Video(clip).save(tmp_path / name)
    error = np.abs(np.asarray(Image.open(tmp_path / name)).astype(int) - clip[0])
    assert error.max() == 0 if name.endswith("png") else error.mean() < 2
    with pytest.raises(OutputError, match="holds one frame, got 2"):
        Video(moving_square(2)).save(tmp_path / name)
    assert np.abs(np.asarray(Image.open(tmp_path / name)).astype(int) - clip[0]).mean() < 2


@pytest.mark.parametrize("chunks", [[5], [1, 4], [9, 1, 2]])
def test_npy(tmp_path, chunks):
    clip = moving_square(sum(chunks))
    with open_video(tmp_path / "out.npy", 16) as writer:
        for chunk in np.split(clip, np.cumsum(chunks)[:-1]):
            writer.write(chunk)
    loaded = np.load(tmp_path / "out.npy")
    assert loaded.dtype == np.uint8 and np.array_equal(loaded, clip)


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.webp", "out.npy", "out/"])
def test_chunks_give_the_same_file_as_one_write(tmp_path, name):
    clip = moving_square(11)
    Video(clip, 12.5).save(f"{tmp_path}/whole_{name}")
    buffer = np.empty((4, *clip.shape[1:]), np.uint8)
    with open_video(f"{tmp_path}/chunks_{name}", 12.5) as writer:
        for start in range(0, 11, 4):
            chunk = clip[start : start + 4]
            buffer[: len(chunk)] = chunk
            writer.write(buffer[: len(chunk)])  # one buffer for all: the writer must not keep it
            writer.write(chunk[:0])
        assert writer.num_frames == 11
    whole, chunks = tmp_path / f"whole_{name}", tmp_path / f"chunks_{name}"
    for a, b in zip(*(sorted(p.iterdir()) if p.is_dir() else [p] for p in (whole, chunks)), strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", ["out.mp4", "out.npy", "out/"])
def test_streaming_keeps_one_chunk_in_memory(tmp_path, name):
    chunk = moving_square(2, 128, 128)
    with open_video(f"{tmp_path}/warm{name}", 16) as writer:
        writer.write(chunk)
    tracemalloc.start()
    with open_video(f"{tmp_path}/{name}", 16) as writer:
        for _ in range(30):
            writer.write(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * chunk.nbytes, "30 chunks went through"


def test_frames_need_not_be_contiguous(tmp_path):
    clip = moving_square(4).transpose(0, 2, 1, 3)[:, ::-1]
    for name in ("out.mp4", "out.webp", "out.npy", "out/"):
        Video(clip).save(f"{tmp_path}/{name}")
        assert np.abs(load_video(f"{tmp_path}/{name}").frames.astype(int) - clip).mean() < 3


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.webp", "out.npy", "out.png", "out.jpg"])
def test_the_new_file_takes_the_place_of_the_old_one(tmp_path, name):
    (tmp_path / name).write_text("old")
    (tmp_path / "old").hardlink_to(tmp_path / name)
    Video(moving_square(1)).save(tmp_path / name)
    assert (tmp_path / "old").read_text() == "old", "written over instead of renamed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old", name]


def test_the_new_file_follows_the_umask_and_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.npy").symlink_to(tmp_path / "real" / "data.npy")
    Video(moving_square(2)).save(tmp_path / "link.npy")
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "real" / "data.npy").shape[0] == 2
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "real" / "data.npy").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_durations_do_not_drift():
    for fps in (Fraction(16), Fraction(30), Fraction(24000, 1001)):
        for unit in (1, 10):
            starts = np.cumsum(durations(500, fps, unit))
            assert np.abs(starts - np.arange(1, 501) * 1000 / float(fps)).max() <= unit / 2 + 1e-6
    assert set(durations(100, Fraction(16), 10)) == {60, 70}


def test_frame_rate():
    assert frame_rate(Fraction(24000, 1001)) == Fraction(24000, 1001) == frame_rate(24000 / 1001)
    assert frame_rate(29.97) == Fraction(2997, 100)
    for bad in (0, -16, float("nan"), float("inf"), 1e-9, 1e9):
        with pytest.raises(RequestError, match="fps is"):
            Video(moving_square(1), bad)


def test_a_video_says_what_it_is():
    video = Video(moving_square(8), 16)
    assert repr(video) == "Video(8 frames of 64x48, 16 fps, 0.50 s)"
    assert (video.num_frames, video.height, video.width, video.seconds) == (8, 48, 64, 0.5)
    for bad in (np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)):
        with pytest.raises(RequestError, match=r"uint8 \[T, H, W, 3\]"):
            Video(bad)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_output_makes_videos_from_frames(output_type):
    from kinema.media.postprocess import postprocess, to_uint8

    video = torch.randn(2, 3, 4, 10, 12, generator=torch.Generator().manual_seed(0))
    output = VideoOutput(postprocess(video, output_type), fps=24, output_type=output_type)
    assert [v.fps for v in output.videos] == [24, 24]
    assert np.array_equal(np.stack([v.frames for v in output.videos]), to_uint8(video))
    assert output.videos is output.videos


def test_latents_have_no_videos():
    output = VideoOutput(torch.ones(1, 4, 2, 3, 3), output_type="latent")
    with pytest.raises(RequestError, match="'latent' gives latents and no videos"):
        _ = output.videos


def test_nan_is_not_painted_black():
    output = VideoOutput(np.full((1, 2, 4, 4, 3), np.nan, np.float32))
    with pytest.raises(KinemaError, match="NaN"):
        _ = output.videos


def test_stats_add_up_and_become_json():
    import json

    stats = Stats(seed=7, steps=20, forwards=40, backends={"attention": "reference"})
    with stats.stage("decode"):
        pass
    assert 0 < stats.seconds["decode"] < 5
    stats.seconds["decode"] = 5.0
    with pytest.raises(ZeroDivisionError), stats.stage("decode"):
        _ = 1 / 0
    assert stats.seconds["decode"] > 5
    summary = json.loads(json.dumps(stats.summary()))
    assert summary["total_seconds"] == pytest.approx(stats.total_seconds)
    assert (summary["seed"], summary["forwards"], summary["backends"]) == (7, 40, {"attention": "reference"})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"fps": 60, "path": "a.gif"}, "at most 50 frames per second, got 60"),
        ({"num_frames": 17, "path": "a.png"}, "holds one frame, got 17"),
        ({"height": 17000, "width": 16, "path": "a.webp"}, "takes 16383 pixels a side at most"),
        ({"height": 480, "width": 833, "path": "a.mp4"}, "width 832 or 834"),
        ({"height": 1, "width": 64, "path": "a.mp4"}, "height 1; nearest: height 2;"),
    ],
)
def test_what_does_not_fit_is_known_before_anything_is_computed(tmp_path, what, message):
    path = tmp_path / what.pop("path")
    check_writable(path)
    with pytest.raises(OutputError, match=message):
        check_writable(path, **what)


def test_options_are_checked(tmp_path):
    with pytest.raises(RequestError, match="crf=20 is an option of mp4"):
        Video(moving_square()).save(tmp_path / "a.gif", crf=20)
    for crf in (-1, 52, 17.5):
        with pytest.raises(RequestError, match="crf must be a whole number"):
            Video(moving_square()).save(tmp_path / "a.mp4", crf=crf)
    with pytest.raises(RequestError, match="not open"):
        open_video(tmp_path / "a.mp4", 16).write(moving_square())
    assert list(tmp_path.iterdir()) == []
