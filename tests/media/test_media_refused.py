"""What is no picture and no video is refused with one line, at once, whatever it is."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib

import av
import numpy as np
import pytest
import torch
from PIL import Image

from kinema.errors import RequestError
from kinema.media.inputs import load_image, load_video
from kinema.media.pixels import MAX_FRAMES, read_image, read_video
from kinema.media.video import Video

READERS = {
    "load_image": load_image,
    "load_video": load_video,
    "read_image": read_image,
    "read_video": lambda path: read_video(path, 8, 8),
}
NAMES = ("in.png", "in.gif", "in.mp4", "in.npy", "in")


def pipe(path):
    os.mkfifo(path)


def link_to_pipe(path):
    os.mkfifo(f"{path}.pipe")
    path.symlink_to(f"{path}.pipe")


def listening_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def endless_device(path):
    path.symlink_to("/dev/zero")


def silent_device(path):
    path.symlink_to("/dev/tty" if os.path.exists("/dev/tty") else "/dev/null")


def link_to_itself(path):
    path.symlink_to(path)


def link_to_nothing(path):
    path.symlink_to(f"{path}.none")


def empty_file(path):
    path.touch()


def zeros(path):
    path.write_bytes(b"")
    os.truncate(path, 2**40)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [
        *(pipe, link_to_pipe, listening_socket, endless_device, silent_device),
        *(link_to_itself, link_to_nothing, empty_file, zeros),
    ],
)
@pytest.mark.usefixtures("soon")
def test_what_is_no_file(tmp_path, make, name, reader):
    make(tmp_path / name)
    with pytest.raises(RequestError, match="cannot read") as refused:
        READERS[reader](tmp_path / name)
    assert "\n" not in str(refused.value) and name in str(refused.value)


@pytest.mark.parametrize("make", [pipe, link_to_pipe, listening_socket, endless_device, empty_file])
@pytest.mark.usefixtures("soon")
def test_what_is_no_file_in_a_folder_of_pictures(tmp_path, make):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    make(tmp_path / "2.png")
    (tmp_path / "3.png").mkdir()
    for read in (load_video, READERS["read_video"]):
        with pytest.raises(RequestError, match=r"cannot read .*2\.png"):
            read(tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(RequestError, match=r"3\.png: it is a folder"):
        load_video(tmp_path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["", "a\0b.png", "x" * 300 + ".png", "\udcff.mp4", "no/such.gif", "https://a.b/c.png"])
def test_paths_that_name_nothing(reader, path):
    with pytest.raises(RequestError, match="cannot read"):
        READERS[reader](path)


def good_files() -> dict[str, bytes]:
    """A small file of every format."""
    pictures = [Image.fromarray(np.full((12, 16, 3), (40 * i, 10, 200), np.uint8)) for i in range(4)]
    found = {}
    for form, more in {"png": {}, "gif": {}, "webp": {}, "tiff": {}}.items():
        file = io.BytesIO()
        pictures[0].save(file, form, save_all=True, append_images=pictures[1:], duration=70, **more)
        found[f"in.{form}"] = file.getvalue()
    for form in ("jpeg", "bmp", "ppm"):
        file = io.BytesIO()
        exif = {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}
        pictures[1].save(file, form, **(exif if form == "jpeg" else {}))
        found[f"in.{form}"] = file.getvalue()
    file = io.BytesIO()
    np.save(file, np.zeros((3, 12, 16, 3), np.uint8))
    found["in.npy"] = file.getvalue()
    for form, codec in {"mp4": "libx264", "matroska": "libx264", "avi": "mpeg4", "mpegts": "mpeg2video"}.items():
        file = io.BytesIO()
        with av.open(file, "w", format=form) as container:
            container.metadata["title"] = "a title"
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for i in range(4):
                frame = np.random.default_rng(i).integers(0, 256, (32, 48, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        found[f"in.{form}"] = file.getvalue()
    return found


GOOD = good_files()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: cut, some bytes changed, a run of bytes zeroed, repeated or left out."""
    values = bytearray(data)
    if not values:
        return data
    kind, place = rng.integers(5), int(rng.integers(len(data)))
    length = int(rng.integers(1, 2 + len(data) // 4))
    if kind == 0:
        del values[place:]
    elif kind == 1:
        for _ in range(1 + int(rng.integers(8))):
            # headers are where sizes and counts stand
            values[int(rng.integers(min(len(values), int(rng.choice([64, 10**9])))))] = int(rng.integers(256))
    elif kind == 2:
        values[place : place + length] = bytes(length)
    elif kind == 3:
        values[place:place] = values[place : place + length]
    else:
        del values[place : place + length]
    return bytes(values)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("soon")
def test_damaged_files_are_read_or_refused(tmp_path, name, rng):
    refused = 0
    for _ in range(40):
        (tmp_path / name).write_bytes(damaged(GOOD[name], rng))
        for read in READERS.values():
            try:
                read(tmp_path / name)
            except RequestError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 10, "the damage does nothing"


@pytest.mark.parametrize("name", GOOD)
def test_the_undamaged_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name])
    assert load_video(tmp_path / name).num_frames == {"in.jpeg": 1, "in.bmp": 1, "in.ppm": 1, "in.npy": 3}.get(name, 4)


def test_a_title_in_another_encoding_is_no_damage(tmp_path):
    (tmp_path / "in.mp4").write_bytes(GOOD["in.mp4"].replace(b"a title", b"\xff\xfetitre"))
    assert load_video(tmp_path / "in.mp4").num_frames == 4


@pytest.mark.parametrize("form", ["png", "jpeg", "gif"])
def test_pictures_that_were_opened_and_never_decoded(form):
    """Pillow decodes when pixels are first asked for: then it finds that the file is cut short."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, form)
    cut = file.getvalue()[: len(file.getvalue()) // 2]
    for read in (load_image, read_image, lambda picture: read_video([picture], 8, 8)):
        with pytest.raises(RequestError, match="cannot read"):
            picture = Image.open(io.BytesIO(cut))
            picture.info["transparency"] = 3
            read(picture)
            if form == "gif":  # a decoder that ends early is not told from a picture that does
                raise RequestError("cannot read")


def huge_png() -> bytes:
    """Of 8000x8000 pixels, by its header."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    header = b"IHDR" + struct.pack(">II", 8000, 8000) + file.getvalue()[24:29]
    return file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]


def test_pictures_that_were_opened_and_are_too_large():
    for read in (load_image, read_image, lambda picture: read_video([picture], 8, 8)):
        with pytest.raises(RequestError, match=r"8000x8000, and the limit is 33\.2 million"):
            read(Image.open(io.BytesIO(huge_png())))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.float32),
        torch.zeros(3, 0, 8),
        torch.zeros(3, 8, 0, dtype=torch.uint8),
        torch.zeros(3, 8, 8, device="meta"),
        torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"),
        torch.zeros(3, 8, 8).to_sparse(),
        torch.zeros(3, 8, 8, dtype=torch.complex64),
        torch.zeros(3, 8, 8).to(torch.float8_e4m3fn),
        np.zeros((8, 8, 3), np.longdouble),
        np.zeros((8, 8, 3), object),
        np.zeros((8, 8, 3), "U1"),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 3), bool),
        np.zeros((), np.uint8),
        np.zeros((2, 1, 8, 8, 3), np.uint8),
        Image.new("RGB", (0, 8)),
        Image.new("RGB", (8, 0)),
        b"in.png",
        object(),
        None,
        [],
        [[]],
    ],
    ids=lambda pixels: f"{type(pixels).__name__} {getattr(pixels, 'dtype', '')} {getattr(pixels, 'shape', '')}",
)
def test_pixels_that_are_none(pixels):
    for read in (read_image, lambda pixels: read_video(pixels, 8, 8), lambda pixels: read_video([pixels] * 2, 8, 8)):
        with pytest.raises(RequestError) as refused:
            read(pixels)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.01, 255.0, -1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_value_that_is_no_colour(value, dtype):
    image = torch.rand(3, 5, 7, dtype=dtype)
    image[1, 2, 3] = value
    forms = [image, image[None]]
    if dtype is not torch.bfloat16:
        forms += [image.permute(1, 2, 0).numpy(), image.permute(1, 2, 0).numpy().astype(">f8")]
    for form in forms:
        with pytest.raises(RequestError, match=r"NaN|must lie in 0\.\.1"):
            read_image(form)
    for video in (image[None], torch.stack([image * 0, image]), [image * 0, image]):
        with pytest.raises(RequestError, match=r"NaN|must lie in 0\.\.1"):
            read_video(video, 8, 8)
    assert read_video(torch.stack([image.clone().fill_(0.5), image]), 8, 8, num_frames=1).num_frames == 1


def test_arrays_of_another_byte_order_are_read():
    values = np.random.default_rng(0).random((6, 7, 3))
    expected = read_image(values.astype(np.float32)).values(6, 7)
    assert torch.equal(read_image(values.astype(">f4")).values(6, 7), expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_files_in_both_orders(tmp_path, rng, order, version):
    clip = rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    with open(tmp_path / "in.npy", "wb") as file:
        np.lib.format.write_array(file, np.asarray(clip, order=order), version=version)
    assert np.array_equal(load_video(tmp_path / "in.npy").frames, clip)
    assert np.array_equal(load_video(tmp_path / "in.npy", max_frames=2).frames, clip[:2])
    os.truncate(tmp_path / "in.npy", (tmp_path / "in.npy").stat().st_size - 1)
    with pytest.raises(RequestError, match="shorter than its"):
        load_video(tmp_path / "in.npy")


def test_a_video_without_an_end(rng):
    """Of a video whose length nobody gives, so many frames are read and no more."""
    frames = np.zeros((MAX_FRAMES + 1, 2, 2, 3), np.uint8)
    asked = []
    with pytest.raises(RequestError, match=f"more than {MAX_FRAMES} frames: say with num_frames"):
        read_video(frames, 2, 2, fits=asked.append)
    assert asked[-1] == MAX_FRAMES
    assert read_video(frames, 2, 2, num_frames=MAX_FRAMES + 1).num_frames == MAX_FRAMES + 1
    assert read_video(frames[1:], 2, 2).num_frames == MAX_FRAMES


def test_a_video_that_is_read_whole_has_a_limit(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", np.zeros((9, 4, 5, 3), np.uint8))
    monkeypatch.setattr("kinema.media.inputs.MAX_VIDEO_BYTES", 8 * 60)
    with pytest.raises(RequestError, match="read its first 8 frames with max_frames"):
        load_video(tmp_path / "in.npy")
    assert load_video(tmp_path / "in.npy", max_frames=8).num_frames == 8


@pytest.mark.parametrize("name", ["a.npy", "a.gif", "a.webp", "a.mp4", "a/"])
def test_no_frame_is_read_beyond_what_is_asked(tmp_path, name, monkeypatch, rng):
    """And none before `fits` has been asked for the clip."""
    from kinema.media import inputs, pixels

    Video(rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)).save(f"{tmp_path}/{name}")
    read = []

    def counted(path):
        for frame in open_video(path):
            read.append(1)
            yield frame

    open_video = inputs.open_video
    monkeypatch.setattr(inputs, "open_video", counted)
    assert read_video(f"{tmp_path}/{name}", 8, 8, num_frames=4).num_frames == 4
    assert len(read) == 4
    read.clear()

    def fits(num_frames):
        if num_frames >= 4:
            raise RequestError("too much")

    with pytest.raises(RequestError, match="too much"):
        pixels.read_video(f"{tmp_path}/{name}", 8, 8, fits=fits)
    assert len(read) == 4
    read.clear()
    with pytest.raises(RequestError, match="too much"):
        pixels.read_video(f"{tmp_path}/{name}", 8, 8, num_frames=9, fits=fits)
    assert not read
