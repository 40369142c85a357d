"""What pillow reads: stills and animated pictures, as upright 8-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, ImageSequence, UnidentifiedImageError

from kinema.errors import RequestError
from kinema.media.files import damage_is_refused, open_file
from kinema.media.limits import MAX_FRAME_PIXELS, MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, MAX_STILL_PIXELS, check_size
from kinema.media.timing import stored_durations, timing_of

# Only what pillow decodes itself: some of its other formats start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_DIRECTLY = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
_THROUGH = {"La": "LA", "RGBa": "RGBA"}  # premultiplied
_STRIP_PIXELS = 2**20
_BITS_PER_SAMPLE = 258  # a tag of TIFF

Samples: TypeAlias = npt.NDArray[Any]


def picture_of(image: Path | Image.Image | npt.NDArray[np.generic]) -> Image.Image:
    """What a file, a picture that someone has opened or made, or uint8 pixels [H, W, 3] show: upright, in RGB."""
    if isinstance(image, Path):
        return read_still(image)
    return _upright(image) if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))


def read_still(path: Path, most: int = MAX_PICTURE_PIXELS) -> Image.Image:
    """A file's picture, the first one of an animation. Its size is looked at before a pixel is decoded."""
    with open_file(path, "image") as file, _opened(file, "image", path) as opened:
        check_size(*opened.size, min(most, _limit(opened)), f"image {path}")
        ImageOps.exif_transpose(opened, in_place=True)
        return as_rgb(opened)


class AnimationReader:
    """The frames of an animated picture as they are shown, at one rate; of a still, one.

    Iterating gives uint8 [H, W, 3]. `rate` (frames per second, None if the file says nothing) is known from the first
    frame on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rate: Fraction | None = None

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        with open_file(self.path, "video") as file:
            durations, unit = stored_durations(file)
            file.seek(0)
            with _opened(file, "video", self.path) as opened:
                timing = timing_of(durations, unit, _comment(opened))
                self.rate = timing.rate
                hidden = int(getattr(opened, "default_image", False))  # for programs that show no animations
                for index, picture in enumerate(ImageSequence.Iterator(opened), -hidden):
                    check_size(*picture.size, min(MAX_STILL_PIXELS, _limit(opened)), f"video {self.path}")
                    if index >= 0:
                        frame = np.asarray(as_rgb(ImageOps.exif_transpose(picture), picture))
                        for _ in range(timing.repeats[index] if index < len(timing.repeats) else 1):
                            yield frame


def _upright(picture: Image.Image) -> Image.Image:
    with damage_is_refused("image"):
        _check_undecoded(picture)
        return as_rgb(ImageOps.exif_transpose(picture), picture)


def as_rgb(picture: Image.Image, opened: Image.Image | None = None) -> Image.Image:
    """A new picture in RGB. Transparency is dropped, 16 bits become 8, floats in 0..1 become 0..255.

    Pillow's own conversion would clip what has more than 8 bits, to white mostly. RequestError if it is unknown
    which value is white. opened: the original that records it, if `picture` is a turned copy.
    """
    _check_undecoded(picture)
    mode = picture.mode
    if mode in _THROUGH or (mode == "P" and isinstance(picture.info.get("transparency"), bytes)):
        picture = picture.convert(_THROUGH.get(mode, "RGBA"))
    if picture.mode in _DIRECTLY:
        return picture.convert("RGB")
    opened = opened or picture
    if mode.startswith("I;16") or (mode == "I" and opened.format in ("PNG", "PPM")):
        white = 2 ** getattr(opened, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0] - 1
        return _in_strips(picture, lambda values: (values.clip(0, white).astype(np.uint32) * 255 + white // 2) // white)
    if mode == "F":
        return _in_strips(picture, _from_unit)
    raise RequestError(f"a picture of pillow's mode {mode} does not say which value is white: convert it to RGB first")


def _opened(file: BinaryIO, kind: str, path: Path) -> Image.Image:
    if os.fstat(file.fileno()).st_size > MAX_PICTURE_BYTES:
        raise RequestError(f"cannot read {kind} {path}: the file has more than {MAX_PICTURE_BYTES >> 20} MiB")
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise RequestError(f"cannot read {kind} {path}: it is none of {', '.join(FORMATS)}, or damaged") from error


def _check_undecoded(picture: Image.Image) -> None:
    """Check the size before decoding begins here: whoever opened the picture may not have."""
    if 0 in picture.size or getattr(picture, "tile", None):
        check_size(*picture.size, _limit(picture), "image")


def _limit(opened: Image.Image) -> int:
    """The most pixels to decode: decoders of animations hold a picture several times."""
    several = opened.format in ("GIF", "WEBP") or (opened.format == "PNG" and getattr(opened, "is_animated", False))
    return MAX_FRAME_PIXELS if several else MAX_PICTURE_PIXELS


def _comment(opened: Image.Image) -> str:
    """Where our encoders leave `timing.note`."""
    found = opened.info.get("comment") if opened.format == "GIF" else None
    if opened.format == "WEBP":
        found = opened.getexif().get(ExifTags.Base.ImageDescription)
    return found.decode("latin-1") if isinstance(found, bytes) else str(found or "")


def _from_unit(values: Samples) -> Samples:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise RequestError(f"the values of a float picture must lie in 0..1, got {low:g}..{high:g}: scale them first")
    return cast("Samples", np.rint(values * 255))


def _in_strips(picture: Image.Image, to_8_bits: Callable[[Samples], Samples]) -> Image.Image:
    """A grey picture through `to_8_bits`, some rows at a time, so that its samples are never all held at once."""
    width, height = picture.size
    grey = Image.new("L", (width, height))
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = np.asarray(picture.crop((0, top, width, min(top + rows, height))))
        grey.paste(Image.fromarray(to_8_bits(strip).astype(np.uint8)), (0, top))
    return grey.convert("RGB")
