"""What reading takes of memory, measured in processes of their own: a small file must not take gigabytes."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import av
import numpy as np
import pytest
from PIL import Image

# prints what was said of each file, and by how many MiB the process has grown at its peak
READ = """
import sys, warnings
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
import torch, av, kinema.media.container_files
from kinema.errors import RequestError
from kinema.media.inputs import load_image, load_video
from kinema.media.pixels import read_image, read_video
warnings.simplefilter("ignore")
before = peak()
for reader, path in zip(sys.argv[1::2], sys.argv[2::2]):
    read = {"load_image": load_image, "load_video": load_video, "read_image": read_image,
            "read_video": lambda path: read_video(path, 32, 32)}[reader]
    try:
        read(path)
        print("read")
    except RequestError as error:
        print(error)
print(peak() - before)
"""

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="has no /proc")


def growth(*pairs) -> tuple[list[str], int]:
    command = [sys.executable, "-c", READ, *(str(word) for pair in pairs for word in pair)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return said, int(peak)


def encode(path, width: int, height: int, frames: int, **options) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "45", "threads": "1", **options}
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for i in range(frames):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def npy(path, *shape: int) -> None:
    """A file of zeros that takes no room on the disk."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))


def test_a_video_is_read_frame_by_frame(tmp_path):
    """64 frames of 1080p are 380 MiB; the file has 6 kB."""
    encode(tmp_path / "in.mp4", 1920, 1080, 64)
    npy(tmp_path / "in.npy", 64, 1080, 1920, 3)
    said, grown = growth(("read_video", tmp_path / "in.mp4"), ("read_video", tmp_path / "in.npy"))
    assert said == ["read", "read"] and grown < 150


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_what_announces_too_many_pixels_is_refused_unread(tmp_path):
    encode(tmp_path / "large.mp4", 4608, 2304, 1)
    encode(tmp_path / "large.ts", 4608, 2304, 1)
    npy(tmp_path / "large.npy", 1, 30000, 30000, 3)
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 200)]
    for form in ("png", "gif", "webp", "tiff"):
        frames[0].save(tmp_path / f"small.{form}", save_all=form == "webp", append_images=frames[1:], lossless=True)
    sizes = {
        "gif": (6, b"\xff\xff\xff\xff", b"\x00\x30\x00\x30"),
        "png": (16, b"\0\1\0\0\0\1\0\0", b"\0\0\x20\0\0\0\x20\0"),
        "webp": (24, b"\xfe\x3f\x00\xfe\x3f\x00", b"\xff\x2f\x00\xff\x2f\x00"),
    }
    for form, (at, *values) in sizes.items():
        for i, value in enumerate(values):
            data = patched((tmp_path / f"small.{form}").read_bytes(), at, value)
            if form == "png":
                data = patched(data, 29, zlib.crc32(data[12:29]).to_bytes(4, "big"))
            (tmp_path / f"large{i}.{form}").write_bytes(data)
    names = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("large"))
    pairs = [(reader, tmp_path / name) for name in names for reader in ("read_image", "load_video", "read_video")]
    said, grown = growth(*pairs)
    assert len(said) == len(pairs) == 27 and "read" not in said
    for (reader, path), line in zip(pairs, said, strict=True):
        if reader != "read_image" or path.suffix in (".gif", ".png", ".webp"):
            assert "and the limit is" in line or "exceeds limit" in line, line
    assert grown < 120


def test_the_largest_pictures_take_a_few_times_their_size(tmp_path):
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    Image.new("RGBA", (7680, 4320)).save(tmp_path / "in.png", compress_level=1)
    Image.new("RGB", (7680, 4320)).save(tmp_path / "in.jpg", progressive=True, exif=turned)
    Image.new("F", (7680, 4320)).save(tmp_path / "in.tiff", compression="tiff_adobe_deflate")
    said, grown = growth(*(("read_image", tmp_path / name) for name in ("in.png", "in.jpg", "in.tiff")))
    assert said == ["read"] * 3 and grown < 400


def test_the_largest_animations_take_a_few_times_a_frame(tmp_path):
    frames = [Image.new("L", (4096, 2304), shade) for shade in (0, 100, 200)]
    for name, options in {"in.gif": {"optimize": False}, "in.webp": {"lossless": True, "method": 0}}.items():
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, **options)
    said, grown = growth(*(("read_video", tmp_path / name) for name in ("in.gif", "in.webp")))
    assert said == ["read"] * 2 and grown < 400
