"""GIF, WebP, PNG and JPEG through pillow.

Pictures are encoded in memory and then written: pillow reports a failed write of its own as an "encoder
error" without the reason.
"""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from kinema.media.formats import FRAME_NAME
from kinema.media.timing import note

JPEG_QUALITY = 95


class StillEncoder:
    """One frame to a .png or .jpg."""

    def __init__(self, place: Path, format_name: str) -> None:
        self._place = place
        self._format = format_name

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        (frame,) = frames
        self._place.write_bytes(encode_still(frame, self._format))

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class FolderEncoder:
    """frame_00000.png, frame_00001.png, … in a folder."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._count = 0

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        for frame in frames:
            (self._place / FRAME_NAME.format(self._count)).write_bytes(encode_still(frame, "png"))
            self._count += 1

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class AnimationEncoder:
    """Animated GIF (256 colours per frame) or lossless WebP. Collects all frames: pillow wants them at once.

    Both encoders merge a frame that equals the one before it into one longer frame, and round its time; a comment in
    the file says how many frames it was at which rate.
    """

    def __init__(self, place: Path, format_name: str, fps: Fraction) -> None:
        self._place = place
        self._format = format_name
        self._fps = fps
        self._frames: list[Image.Image] = []

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        for frame in frames:
            picture = Image.fromarray(frame)
            if self._format == "gif":
                picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
            self._frames.append(picture)

    def finish(self) -> None:
        comment = note(len(self._frames), self._fps)
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = comment
        unit = 10 if self._format == "gif" else 1
        options = {"comment": comment} if self._format == "gif" else {"exif": exif, "lossless": True}
        self._place.write_bytes(
            _encode(
                self._frames[0],
                self._format,
                save_all=True,
                append_images=self._frames[1:],
                duration=durations(len(self._frames), self._fps, unit),
                loop=0,
                **options,
            )
        )

    def abandon(self) -> None:
        self._frames.clear()


def encode_still(frame: npt.NDArray[np.uint8], format_name: str) -> bytes:
    """frame [H, W, 3] as the bytes of a png or jpeg file."""
    if format_name == "jpeg":
        return _encode(Image.fromarray(frame), "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return _encode(Image.fromarray(frame), format_name)


def durations(count: int, fps: Fraction, unit: int) -> list[int]:
    """Milliseconds per frame, each a multiple of `unit`, so that every frame starts at its time to within half a unit.

    At 16 fps a GIF (unit 10) gets 60, 60, 70, 60, … and not 60 throughout, which would play 4 % too fast.
    """
    times = [round(Fraction(i * 1000, unit) / fps) * unit for i in range(count + 1)]
    return [end - start for start, end in pairwise(times)]


def _encode(picture: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format_name.upper(), **options)
    return buffer.getvalue()
